"""Execute one notebook with papermill and strip what differs from run to run.

Run by build.py in a process of its own: ``python execute.py SOURCE TARGET PARAMETERS.json``. The target appears in one
step, and only if every cell ran. What went wrong is the last line of the output, as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path

import psutil


def execute(source: Path, target: Path, parameters: dict) -> None:
    """Execute ``source`` into ``target``; the working directory of the notebook is that of this process."""
    import papermill

    part = target.with_name(f"part-{target.name}")
    papermill.execute_notebook(
        str(source),
        str(part),
        parameters=parameters,
        kernel_name="python3",
        language="python",
        progress_bar=False,
        start_timeout=180,
        cwd=os.getcwd(),
    )
    notebook = json.loads(part.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    left = [
        number for number, cell in enumerate(code, 1) if "".join(cell["source"]).strip() and not cell["execution_count"]
    ]
    if left:
        raise RuntimeError(
            f"the run ended before code cell {left[0] - bool(parameters)}, by SystemExit in the one before"
        )
    notebook = normalise(notebook)
    part.write_text(json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
    part.replace(target)


def normalise(notebook: dict) -> dict:
    """Drop times, versions and random ids, so that two executions give the same bytes."""
    notebook["metadata"] = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook["cells"]):
        cell["id"] = f"cell-{number:03d}"
        for key in ("papermill", "execution"):
            cell["metadata"].pop(key, None)
        if not cell["metadata"].get("tags", True):
            del cell["metadata"]["tags"]
        if "outputs" in cell:
            cell["outputs"] = _merge_streams(cell["outputs"])
    return notebook


def _merge_streams(outputs: list[dict]) -> list[dict]:
    """Join neighbouring pieces of one stream: where they were cut depends on timing."""
    merged: list[dict] = []
    for output in outputs:
        last = merged[-1] if merged else {}
        if output["output_type"] == "stream" and output.get("name") == last.get("name"):
            last["text"] = "".join([*last["text"], *output["text"]]).splitlines(keepends=True)
        else:
            merged.append(output)
    return merged


def descendants(process: int) -> list[psutil.Process]:
    """Processes that a process started, and those that they started: a kernel, and the workers of a simulation."""
    try:
        return psutil.Process(process).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def end(processes: list[psutil.Process]) -> None:
    """Kill what still runs of these processes. psutil knows a process from a later one of the same number."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _leave_with_parent(parent: int) -> None:
    """End this process and all that it started when build.py is gone, however it ended."""
    while os.getppid() == parent:
        time.sleep(1.0)
    end(descendants(os.getpid()))
    os._exit(1)


def main(source: str, target: str, parameters: str) -> int:
    """Entry point; returns the exit status."""
    threading.Thread(target=_leave_with_parent, args=(os.getppid(),), daemon=True).start()
    given = json.loads(Path(parameters).read_text(encoding="utf-8"))
    try:
        execute(Path(source), Path(target), given)
    except Exception as error:
        traceback.print_exc()
        # Given parameters stand in a cell of their own, which is not in the notebook that its author reads.
        count = getattr(error, "exec_count", None)
        where = f"code cell {count - bool(given)}: " if count else ""
        name = getattr(error, "ename", type(error).__name__)
        said = str(getattr(error, "evalue", error)).strip().splitlines() or [""]
        print(json.dumps({"error": f"{where}{name}: {said[0]}"}), flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
