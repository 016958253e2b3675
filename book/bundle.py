"""Pack a chapter with all that it needs into one zip file that runs from a bare folder.

The folders inside are those of the project, so the notebook is the committed one, unchanged, and finds its data where
it looks for them. The same files give the same bytes: entries are sorted and carry one fixed time.
"""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

from poq.chapters import read_parameters

ROOT = Path(__file__).resolve().parent.parent
TIME = (2020, 1, 1, 0, 0, 0)  # of every entry; a real time would change the file with every build
COMMON = ("LICENSE", "LICENSE-text", "pyproject.toml", "requirements.lock")
README = """# {title}

One chapter of *Proof of Quality, tested*, with everything that it needs: the notebook `{notebook}`, {data}the simulator
`poq`, and the exact versions of all packages in `requirements.lock`. You need Python 3.11, 3.12 or 3.13.

Set up an environment in this folder, once:

```
python3 -m venv .venv
.venv/bin/python -m pip install --require-hashes -r requirements.lock
.venv/bin/python -m pip install --no-deps --no-build-isolation .
```

Run the chapter with its own parameters (full size):

```
cd {folder}
../../.venv/bin/python -m papermill --kernel python3 {name} run.ipynb
```

or with values of your own, such as a smaller size:

```
cd {folder}
../../.venv/bin/python -m papermill --kernel python3 {name} run.ipynb {example}
```

The executed notebook is `{folder}/run.ipynb`; its tables and their run records stand in `{folder}/results/{stem}`. To
change it by hand, start `.venv/bin/python -m jupyterlab {notebook}`.

Its parameters:

{parameters}

Code: MIT (`LICENSE`). Text, figures and data: CC-BY-4.0 (`LICENSE-text`).
"""


def write_bundle(source: Path, target: Path, *, book: Path) -> Path:
    """Write the bundle of one notebook of the book.

    Parameters
    ----------
    source : Path
        The notebook, in a folder of ``book``; outputs that a reader saved in it stay out.
    target : Path
        The zip file.
    book : Path
        The folder of the book.
    """
    notebook = _without_outputs(source)
    data = read_files(source, book)
    entries = {f"book/{source.relative_to(book).as_posix()}": json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"}
    entries["README.md"] = _readme(source, notebook, data, book)
    files = {name: ROOT / name for name in COMMON}
    files |= {f"book/{path.relative_to(book).as_posix()}": path for path in data}
    package = [path for path in (ROOT / "poq").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    files |= {path.relative_to(ROOT).as_posix(): path for path in package}
    contents = {name: text.encode() for name, text in entries.items()}
    contents |= {name: path.read_bytes() for name, path in files.items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w") as archive:
        for name in sorted(contents):
            entry = zipfile.ZipInfo(f"{source.stem}/{name}", TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, contents[name], compresslevel=9)
    return target


def read_files(source: Path, book: Path) -> list[Path]:
    """Files of the book that a notebook names in its code, by a path like ``../data/x.csv`` or beside such a file."""
    cells = json.loads(source.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    names = set(re.findall(r"""["']([\w./-]+\.\w+)["']""", code))
    found = _inside(source.parent, names, book)
    for folder in {path.parent for path in found}:
        found |= _inside(folder, names, book)
    return sorted(found)


def _inside(folder: Path, names: set[str], book: Path) -> set[Path]:
    paths = {(folder / name).resolve() for name in names}
    return {path for path in paths if path.is_relative_to(book.resolve()) and path.is_file()}


def _without_outputs(source: Path) -> dict:
    notebook = json.loads(source.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    return notebook


def _readme(source: Path, notebook: dict, data: list[Path], book: Path) -> str:
    prose = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    heading = re.search(r"^# (.+)$", prose, flags=re.MULTILINE)
    parameters = read_parameters(source)
    lines = [
        f"- `{name}` ({parameter.kind}, default `{json.dumps(parameter.default)}`): {parameter.help}"
        for name, parameter in parameters.items()
    ]
    example = next((f"-p {name} 500" for name in ("n_rounds", "n_draws", "n_boot") if name in parameters), "-p seed 2")
    return README.format(
        title=heading[1] if heading else source.stem,
        notebook=f"book/{source.relative_to(book).as_posix()}",
        data="".join(f"`book/{path.relative_to(book.resolve()).as_posix()}`, " for path in data),
        folder=f"book/{source.parent.relative_to(book).as_posix()}",
        name=source.name,
        stem=source.stem,
        example=example,
        parameters="\n".join(lines),
    )
