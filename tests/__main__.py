"""Everything that ``make test`` checks, one step after the other, with a summary: ``python -m tests``."""

import subprocess
import sys
import time

from poq.jobs import n_cores

STEPS = {
    "lint": ["-m", "ruff", "check", "."],
    "format": ["-m", "ruff", "format", "--check", "."],
    "fast book": ["book/build.py", "book", "--profile", "fast"],
    "tests": ["-m", "pytest", "-q", "-n", str(min(n_cores(), 4)), "--dist", "loadgroup"],
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
    print("== summary")
    for name, status, seconds in summary:
        print(f"{'passed' if status == 0 else 'FAILED'}  {name:<10} {seconds:6.1f} s")
    return 1 if any(status for _, status, _ in summary) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
