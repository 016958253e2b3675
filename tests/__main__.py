"""Everything that ``make test`` checks, with a summary: ``python -m tests``.

The tests that read the fast book, with those that do what readers do, and all others take about as long, and run side
by side.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time

from book.build import OUT

STEPS = {
    "lint": ["-m", "ruff", "check", "."],
    "format": ["-m", "ruff", "format", "--check", "."],
    "fast book": ["book/build.py", "book", "--profile", "fast"],
}
TESTS = {
    "tests of the book": ["-m", "pytest", "-q", "-m", "book"],
    "other tests": ["-m", "pytest", "-q", "-m", "not book"],
}


def main() -> int:
    """Run every step, also after one failed; return 1 if any did."""
    summary = []
    for name, arguments in STEPS.items():
        print(f"== {name}", flush=True)
        begun = time.monotonic()
        status = subprocess.run([sys.executable, *arguments]).returncode
        if status == 130:
            return 130
        summary.append((name, status, time.monotonic() - begun))
        if name == "fast book" and status == 0:
            os.environ["FAST_BOOK"] = str(OUT / "fast" / "html")
    summary += run_beside(TESTS)
    print("== summary")
    for name, status, seconds in summary:
        print(f"{'passed' if status == 0 else 'FAILED'}  {name:<17} {seconds:6.1f} s")
    return 1 if any(status for _, status, _ in summary) else 0


def run_beside(steps: dict[str, list[str]]) -> list[tuple[str, int, float]]:
    """Run steps at the same time: the last one is seen as it goes, what the others print is shown when all are done."""
    begun = time.monotonic()
    running, ended = {}, {}
    with contextlib.ExitStack() as stack:
        for name, arguments in steps.items():
            shown = None if name == list(steps)[-1] else stack.enter_context(tempfile.TemporaryFile())
            print(f"== {name}{' (shown when done)' if shown else ''}", flush=True)
            process = subprocess.Popen([sys.executable, *arguments], stdout=shown, stderr=shown)
            stack.callback(process.wait)
            stack.callback(process.terminate)  # first, where the wait below is interrupted
            running[name] = process, shown
        while len(ended) < len(running):
            time.sleep(0.2)
            for name, (process, _) in running.items():
                if name not in ended and process.poll() is not None:
                    ended[name] = time.monotonic() - begun
        for name, (_, shown) in running.items():
            if shown:
                shown.seek(0)
                print(f"== {name}", shown.read().decode(errors="replace"), sep="\n", flush=True)
    return [(name, process.returncode, ended[name]) for name, (process, _) in running.items()]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
