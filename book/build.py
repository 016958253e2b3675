"""Build the book: check, execute what changed, render, check the pages, and only then replace the last good book.

``python book/build.py book [--profile fast]`` builds the book; ``python book/build.py chapter STEM "n_rounds=20000"``
runs one chapter with other parameters and renders it on its own; ``pdf`` prints the book. The Makefile calls them.

The steps: (1) copy this folder to a stage; (2) check every parameter; (3) execute the chapters that changed, two at a
time, each in a process of its own; (4) strip what differs from run to run; (5) put a chapter into the cache, and from
there into the stage, only if every cell ran; (6) render with execution off; (7) check the pages. The last good pages
are replaced in one step at the very end, so a failure costs nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from book.bundle import write_bundle  # noqa: E402
from book.check import check_html  # noqa: E402
from book.execute import descendants, end  # noqa: E402
from book.pdf import PdfError, need_browser, print_book  # noqa: E402
from poq.chapters import (  # noqa: E402
    TEMPLATE,
    ParameterError,
    check_parameters,
    check_together,
    find_chapter,
    list_notebooks,
    parse_assignments,
    read_parameters,
)
from poq.provenance import code_state, file_hash, plain, versions  # noqa: E402

BOOK = ROOT / "book"
OUT = BOOK / "_build"
PROFILES = ("full", "fast")
WORKERS = 2
KEPT_PER_CHAPTER = 12  # executions of one chapter that stay in the cache
FAST_BANNER = "Fast profile: small sizes that only check the build. The numbers on these pages are not results."


class BuildError(Exception):
    """The build cannot go on; the message is one line (or one line per fault) for the user."""


@dataclass(frozen=True)
class Job:
    """One execution of one chapter or study.

    Attributes
    ----------
    label : str
        How messages and files of this execution call it: the stem, or in a sweep the stem and the number of the run.
    stem, source : str, Path
        The notebook.
    given, values : dict
        Values given to it, and the values of all its parameters.
    profile, key : str
        "full" or "fast"; the key of everything that the result depends on.
    """

    label: str
    stem: str
    source: Path
    given: dict[str, Any]
    values: dict[str, Any]
    profile: str
    key: str


# ---------------------------------------------------------------------------------------------- the two commands


def build_book(*, book: Path = BOOK, out: Path = OUT, profile: str = "full") -> Path:
    """Build the whole book and return its first page.

    Raises
    ------
    ParameterError, BuildError
        Before any work for bad input; otherwise after it, with the last good book untouched.
    """
    repository_url(yaml.safe_load((book / "_config.yml").read_text(encoding="utf-8")))
    target = (out if profile == "full" else out / profile) / "html"
    with _lock(out / f".lock-{profile}"), _stage(book) as stage:
        _finish_swap(target)
        jobs = plan(book, profile, {stem: {} for stem in list_notebooks(book)})
        entries = execute(jobs, stage, out)
        for job in jobs:
            _unpack(entries[job.stem], job, stage)
            write_bundle(job.source, stage / "downloads" / f"{job.stem}.zip", book=book)
        runs = [_read_json(entries[job.stem] / "run.json") for job in jobs]
        status = {"profile": profile, **code_state(), "versions": versions(), "chapters": runs}
        write_status(stage, status)
        html = render(stage, out, banner=FAST_BANNER if profile == "fast" else "")
        _copy_results(stage, html)
        (html / "status.json").write_text(json.dumps(status, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        _refuse(check_html(html, toc_pages(stage)))
        _swap(html, target)
    return target / "intro.html"


def build_pdf(*, book: Path = BOOK, out: Path = OUT, profile: str = "full") -> Path:
    """Build the book and print it to one PDF beside its pages; without a browser nothing is built."""
    need_browser()
    html = build_book(book=book, out=out, profile=profile).parent
    print("printing", file=sys.stderr, flush=True)
    with _lock(out / f".lock-{profile}"):
        return print_book(html, html.parent / "proof-of-quality.pdf")


def build_chapter(stem: str, text: str = "", *, book: Path = BOOK, out: Path = OUT, profile: str = "full") -> Path:
    """Run one chapter or study with parameters such as ``"n_rounds=20000 committee=7"``; return its page.

    The page stands in a folder of its own, named after the parameters. The book is not touched.
    """
    notebook = find_chapter(stem, book)
    kinds = {name: parameter.kind for name, parameter in read_parameters(notebook).items()}
    given = parse_assignments(text, kinds)
    if isinstance(given.get("log"), str):
        given["log"] = str(Path(given["log"]).expanduser().resolve())
    [job] = plan(book, profile, {stem: given})
    with _stage(book) as stage:
        entries = execute([job], stage, out)
    return render_alone(job, given, entries[stem], book=book, out=out)


def alone_folder(out: Path, job: Job, given: dict[str, Any]) -> Path:
    """Where the pages of one chapter on its own stand."""
    return out / "chapters" / job.stem / _slug(given, job.profile)


def render_alone(job: Job, given: dict[str, Any], entry: Path, *, book: Path, out: Path) -> Path:
    """Render one executed chapter on its own and return its page.

    Parameters
    ----------
    job, entry : Job, Path
        The execution and its folder in the cache.
    given : dict
        The values that a reader gave, which name the folder and stand at the top of the page.
    book, out : Path
        As in :func:`build_chapter`.
    """
    folder, target = job.source.parent.name, alone_folder(out, job, given)
    with _stage(book) as stage:
        for other in list_notebooks(stage).values():
            if other.stem != job.stem:
                other.unlink()
        _unpack(entry, job, stage)
        _alone(stage, folder, job.stem)
        words = ", ".join(f"{name} = {value}" for name, value in given.items()) or "its own parameters"
        fast = f" {FAST_BANNER}" if job.profile == "fast" else ""
        html = render(stage, out, banner=f"One chapter on its own, with {words}.{fast}", strict=False)
        _copy_results(stage, html)
        shutil.copy(entry / "run.json", html / "run.json")
        _refuse(check_html(html, [f"{folder}/{job.stem}"], links=False))
        with _lock(out / ".lock-chapters", wait=True):
            _finish_swap(target)
            _swap(html, target)
    return target / folder / f"{job.stem}.html"


# ------------------------------------------------------------------------------------------------ 2: plan, check


def plan(book: Path, profile: str, given: dict[str, dict[str, Any]]) -> list[Job]:
    """Check everything that can be checked before any work, and return one job per chapter or study.

    Parameters
    ----------
    book : Path
        The folder of the book.
    profile : str
        "full" (the chapters' own sizes) or "fast".
    given : dict
        Values by chapter, on top of the profile's.
    """
    return plan_runs(book, profile, [(stem, stem, extra) for stem, extra in given.items()])


def plan_runs(book: Path, profile: str, runs: list[tuple[str, str, dict[str, Any]]]) -> list[Job]:
    """As :func:`plan`, for runs (label, stem, values) of which several may be of one chapter."""
    sizes = _profile_sizes(book, profile)
    known = list_notebooks(book)
    for stem in sizes["chapters"]:
        if stem not in known:
            raise BuildError(f"profiles.yml: {profile}: there is no chapter {stem!r}")
    common = _content_key([path for path in _code_files() if path.is_file()], ROOT)
    data = _content_key(_files_below(book / "data"), book)
    logs: dict[Path, dict[str, int]] = {}
    jobs = []
    for label, stem, extra in runs:
        source = find_chapter(stem, book)
        parameters = read_parameters(source)
        small = {name: value for name, value in sizes["all"].items() if name in parameters}
        wanted = check_parameters(source, {**small, **sizes["chapters"].get(stem, {}), **extra})
        values = {name: wanted.get(name, parameter.default) for name, parameter in parameters.items()}
        tasks = None
        if values.get("log") is not None:
            log = (source.parent / values["log"]).resolve()
            if log not in logs:
                logs[log] = _evaluators_by_task(stem, log, values["log"])
            tasks = logs[log]
            wanted, values = _fit_committees(wanted, values, parameters, tasks, chosen=extra)
        check_together(label, values, tasks, str(values.get("log")))
        content = [common, _notebook_key(source), data, json.dumps(plain(wanted), sort_keys=True), profile]
        if values.get("log") is not None:
            content.append(file_hash(log))
        key = hashlib.sha256("\n".join(content).encode()).hexdigest()[:24]
        jobs.append(Job(label, stem, source, wanted, values, profile, key))
    return jobs


def _fit_committees(wanted: dict, values: dict, parameters: dict, tasks: dict[str, int], *, chosen: dict):
    """Without the committee sizes of the profile that the log cannot fill; what was asked for stays, to be refused."""
    if values.get("n_nodes") is not None or not tasks:
        return wanted, values
    least = min(tasks.values())
    wanted = dict(wanted)
    for name in ("committee", "committees"):
        size = wanted.get(name)
        if size is None or name in chosen:
            continue
        fitting = [one for one in size if one <= least] if isinstance(size, list) else size <= least and size
        wanted[name] = fitting or parameters[name].default
    return wanted, {**values, **wanted}


def _profile_sizes(book: Path, profile: str) -> dict[str, dict]:
    if profile not in PROFILES:
        raise BuildError(f"unknown profile {profile!r}; known: {', '.join(PROFILES)}")
    path = book / "profiles.yml"
    sizes = (yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None) or {}
    chosen = sizes.get(profile) or {}
    return {"all": chosen.get("all") or {}, "chapters": chosen.get("chapters") or {}}


def _evaluators_by_task(stem: str, log: Path, said: str) -> dict[str, int]:
    """Number of evaluators per task of a log; a log that cannot be used is an error that names it."""
    from poq.scorelog import ScoreLogError, read_score_log

    if not log.exists():
        raise ParameterError(f"{stem}: log: no such file: {said}")
    try:
        frame = read_score_log(log)
    except (ScoreLogError, OSError) as error:
        raise ParameterError(f"{stem}: log {said}: {' '.join(str(error).split())}") from None
    evaluators = frame["evaluator"].where(frame["score"].notna())  # one that never scored cannot sit
    return {str(task): int(count) for task, count in evaluators.groupby(frame["task"]).nunique().items()}


def _notebook_key(path: Path) -> str:
    """Hash of a notebook's cells without their outputs, which a reader may have saved."""
    cells = [[cell["cell_type"], "".join(cell["source"]), cell["metadata"]] for cell in _read_json(path)["cells"]]
    return hashlib.sha256(json.dumps(cells, sort_keys=True).encode()).hexdigest()


def _code_files() -> list[Path]:
    pages = (ROOT / "poq").rglob("*.html")  # markup that chapters put on their pages
    return [*sorted([*(ROOT / "poq").rglob("*.py"), *pages]), BOOK / "execute.py", ROOT / "requirements.lock"]


def _files_below(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def _content_key(files: list[Path], root: Path) -> str:
    digest = hashlib.sha256(sys.version.encode())
    for path in files:
        digest.update(f"{path.relative_to(root).as_posix()}:{file_hash(path)}\n".encode())
    return digest.hexdigest()


# --------------------------------------------------------------------------------------------------- 3-5: execute


def execute(jobs: list[Job], stage: Path, out: Path) -> dict[str, Path]:
    """Execute the jobs that are not in the cache, and return the cache folder of each by its label.

    A chapter that fails is named at once; the others still finish and are kept for the next time.
    """
    entries = {job.label: _entry(out, job) for job in jobs}
    waiting = [job for job in jobs if not (entries[job.label] / "run.json").is_file()]
    if not waiting:
        return entries
    (out / "logs").mkdir(parents=True, exist_ok=True)
    failed = []
    with tempfile.TemporaryDirectory(prefix="poq-run-") as folder, _progress(len(waiting)) as (show, advance):
        running: dict[str, tuple[Job, subprocess.Popen, float]] = {}
        try:
            while waiting or running:
                while waiting and len(running) < WORKERS:
                    job = waiting.pop(0)
                    running[job.label] = (job, _launch(job, stage, Path(folder), out), time.monotonic())
                show(list(running))
                for label, (job, process, begun) in list(running.items()):
                    if process.poll() is None:
                        continue
                    del running[label]
                    seconds = time.monotonic() - begun
                    fault = _collect(job, process, Path(folder), out, seconds)
                    _prune(entries[label].parent, keep=list(entries.values()))
                    advance(f"{label}: {fault}" if fault else f"{label}: done in {seconds:.1f} s")
                    if fault:
                        failed.append(f"chapter {label} failed: {fault} (see {_shown(out / 'logs' / f'{label}.log')})")
                time.sleep(0.1)
        finally:
            _stop([process for _, process, _ in running.values()])
    _refuse(failed)
    return entries


def _entry(out: Path, job: Job) -> Path:
    return out / ".cache" / "chapters" / job.stem / job.key


def _launch(job: Job, stage: Path, folder: Path, out: Path) -> subprocess.Popen:
    """Start one chapter in a process group of its own, so that Ctrl-C reaches it only through us."""
    work = folder / job.label
    work.mkdir()
    (work / "parameters.json").write_text(json.dumps(plain(job.given)), encoding="utf-8")
    keep = {name: value for name, value in os.environ.items() if name not in ("MPLBACKEND", "PYTHONWARNINGS")}
    one_thread = {
        f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "BLIS", "VECLIB_MAXIMUM", "NUMEXPR", "NUMBA")
    }
    home = out / ".cache" / "home"  # a reader's own IPython start-up files must not change the book
    environment = {
        **keep,
        **one_thread,
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "TQDM_DISABLE": "1",
        "JUPYTER_PREFER_ENV_PATH": "1",
        "JUPYTER_PLATFORM_DIRS": "1",
        "IPYTHONDIR": str(home / "ipython"),
        "MPLCONFIGDIR": str(home / "matplotlib"),
        "POQ_RESULTS": str(work / "results"),
        "POQ_PROFILE": job.profile,
    }
    for name in ("ipython", "matplotlib"):
        (home / name).mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(BOOK / "execute.py"), str(job.source), str(work / "notebook.ipynb")]
    with open(out / "logs" / f"{job.label}.log", "w", encoding="utf-8") as log:
        return subprocess.Popen(
            [*command, str(work / "parameters.json")],
            cwd=stage / job.source.parent.name,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=open(work / "stdout", "wb"),
            stderr=log,
            start_new_session=True,
        )


def _collect(job: Job, process: subprocess.Popen, folder: Path, out: Path, seconds: float) -> str | None:
    """Move a finished chapter into the cache in one step; return what went wrong, or None."""
    work = folder / job.label
    if process.returncode != 0 or not (work / "notebook.ipynb").is_file():
        lines = (work / "stdout").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        try:
            return json.loads(lines[-1])["error"]
        except (IndexError, KeyError, ValueError, TypeError):
            return f"the process ended with status {process.returncode}"
    results = work / "results" / job.stem
    fault = _record_fault(job, results)
    if fault:
        return fault
    run = {
        "chapter": job.stem,
        "profile": job.profile,
        "parameters": plain(job.values),
        "seconds": round(seconds, 2),
        **code_state(),
        "versions": versions(),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    part = _entry(out, job).with_name(f".part-{os.getpid()}-{job.key}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    shutil.copy(work / "notebook.ipynb", part / "notebook.ipynb")
    if results.is_dir():
        shutil.copytree(results, part / "results")
    (part / "run.json").write_text(json.dumps(run, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    entry = _entry(out, job)
    shutil.rmtree(entry, ignore_errors=True)
    part.rename(entry)
    return None


def _record_fault(job: Job, results: Path) -> str | None:
    """A run record must hold every parameter of the chapter with the value that was asked for."""
    for path in sorted(results.glob("*.json")) if results.is_dir() else []:
        recorded = _read_json(path)["parameters"]
        wanted = plain(job.values)
        if recorded != wanted:
            names = sorted(name for name in {*recorded, *wanted} if recorded.get(name, path) != wanted.get(name, path))
            return f"the run record {path.name} differs from the chapter's parameters in: {', '.join(names)}"
    return None


def _prune(folder: Path, *, keep: list[Path]) -> None:
    """Drop the oldest executions of one chapter, but none of ``keep``: a long sweep needs all of its own."""
    if not folder.is_dir():
        return
    entries = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in entries[KEPT_PER_CHAPTER:]:
        if old not in keep:
            shutil.rmtree(old, ignore_errors=True)


def _stop(processes: list[subprocess.Popen]) -> None:
    """End chapters that still run: politely, so that they end their kernels, then by force, with all they started."""
    started = [child for process in processes for child in descendants(process.pid)]
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + 6
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    end(started)


@contextlib.contextmanager
def _progress(total: int) -> Iterator[tuple[Callable[[list[str]], None], Callable[[str], None]]]:
    """A progress bar on a terminal, plain lines elsewhere: ``show(running)`` and ``advance(line)``."""
    if not sys.stderr.isatty():
        seen: set[str] = set()

        def show(running: list[str]) -> None:
            for stem in running:
                if stem not in seen:
                    seen.add(stem)
                    print(f"{stem}: executing ({len(seen)} of {total})", file=sys.stderr, flush=True)

        yield show, lambda line: print(line, file=sys.stderr, flush=True)
        return
    from tqdm import tqdm

    shape = "{desc} {n_fmt}/{total_fmt} |{bar}| {elapsed}{postfix}"
    with tqdm(total=total, desc="chapters", bar_format=shape, dynamic_ncols=True) as bar:

        def update(running: list[str]) -> None:
            words = ", ".join(running)
            if bar.postfix != words:
                bar.set_postfix_str(words, refresh=False)
            if time.monotonic() - update.shown > 0.5:
                update.shown = time.monotonic()
                bar.refresh()

        update.shown = 0.0

        def advance(line: str) -> None:
            bar.update()
            bar.write(line, file=sys.stderr)

        yield update, advance


# ------------------------------------------------------------------------------------------ 1: stage, 6: render


@contextlib.contextmanager
def _stage(book: Path) -> Iterator[Path]:
    """Copy the book's sources to a folder of their own (Sphinx ignores whatever lies under ``_build``)."""
    with tempfile.TemporaryDirectory(prefix="poq-book-") as folder:
        stage = Path(folder).resolve() / "book"
        skipped = shutil.ignore_patterns("_build", "__pycache__", ".ipynb_checkpoints", "results", "*.py[co]")
        shutil.copytree(book, stage, ignore=skipped)
        (stage / "studies" / f"{TEMPLATE}.ipynb").unlink(missing_ok=True)
        _drop_empty_parts(stage)
        yield stage


def _drop_empty_parts(stage: Path) -> None:
    """Leave a part whose patterns find nothing out of the table of contents, such as that of the studies."""
    path = stage / "_toc.yml"
    toc = yaml.safe_load(path.read_text(encoding="utf-8"))

    def has_pages(part: dict) -> bool:
        return any("glob" not in entry or any(stage.glob(entry["glob"])) for entry in part["chapters"])

    if "parts" in toc:
        toc["parts"] = [part for part in toc["parts"] if has_pages(part)]
        path.write_text(yaml.safe_dump(toc, sort_keys=False), encoding="utf-8")


def _unpack(entry: Path, job: Job, stage: Path) -> None:
    folder = stage / job.source.parent.name
    shutil.copy(entry / "notebook.ipynb", folder / f"{job.stem}.ipynb")
    if (entry / "results").is_dir():
        shutil.copytree(entry / "results", folder / "results" / job.stem)


def _copy_results(stage: Path, html: Path) -> None:
    """Put the tables of all executed notebooks beside the pages."""
    for folder in ("chapters", "studies"):
        if (stage / folder / "results").is_dir():
            shutil.copytree(stage / folder / "results", html / "results", dirs_exist_ok=True)


def _alone(stage: Path, folder: str, stem: str) -> None:
    """Reduce the stage to one chapter and the pages it leans on."""
    kept = [page for page in ("notation", "glossary", "bibliography") if (stage / f"{page}.md").is_file()]
    toc = {"format": "jb-book", "root": f"{folder}/{stem}", "chapters": [{"file": page} for page in kept]}
    (stage / "_toc.yml").write_text(yaml.safe_dump(toc), encoding="utf-8")
    notebook = stage / folder / f"{stem}.ipynb"
    content = _read_json(notebook)
    for cell in content["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = _without_links("".join(cell["source"]), notebook.parent, {stem, *kept})
    notebook.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for name in kept:
        page = stage / f"{name}.md"
        page.write_text(_without_links(page.read_text(encoding="utf-8"), stage, {stem, *kept}), encoding="utf-8")


def _without_links(text: str, folder: Path, kept: set[str]) -> str:
    """Turn links to pages of the book that are not here into their words."""

    def words(link: re.Match) -> str:
        return link[0] if (folder / link[2]).stem in kept else link[1]

    return re.sub(r"\[([^\]]*)\]\(([^)\s#:]+\.(?:ipynb|md))(?:#[^)\s]*)?\)", words, text)


def render(stage: Path, out: Path, *, banner: str = "", strict: bool = True) -> Path:
    """Render the stage with Jupyter Book, without executing anything, and return the folder of the pages.

    Parameters
    ----------
    stage : Path
        A copy of the book whose chapters hold their outputs.
    out : Path
        Where the log goes.
    banner : str
        Announced at the top of every page.
    strict : bool
        Whether a warning is an error, as it is for the whole book.
    """
    config = yaml.safe_load((stage / "_config.yml").read_text(encoding="utf-8"))
    if banner:
        config.setdefault("html", {})["announcement"] = banner
    _add_buttons(config)
    (stage / "_config.yml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    _copy_mathjax(stage / "assets" / "mathjax")
    start = "from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-c", start, "build", str(stage), "--path-output", str(stage.parent / "pages")]
    environment = {**os.environ, "PYTHONHASHSEED": "0", "SPHINX_NO_COLOR": "1", "NO_COLOR": "1"}
    begun = time.monotonic()
    print("rendering", file=sys.stderr, flush=True)
    done = subprocess.run(
        [*command, *(["-W", "--keep-going"] if strict else [])],
        capture_output=True,
        text=True,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    text = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr).replace(str(stage) + os.sep, "")
    (out / "logs").mkdir(parents=True, exist_ok=True)
    log = out / "logs" / "render.log"
    log.write_text(text, encoding="utf-8")
    html = stage.parent / "pages" / "_build" / "html"
    if done.returncode != 0 or not html.is_dir():
        faults = [line for line in text.splitlines() if re.search(r"WARNING|ERROR|Error:|Exception", line)]
        raise BuildError("\n".join([*faults[:20], f"rendering failed (see {_shown(log)})"]))
    print(f"rendered in {time.monotonic() - begun:.1f} s", file=sys.stderr, flush=True)
    return html


def repository_url(config: dict[str, Any]) -> str:
    """Address of the repository: REPOSITORY_URL from the environment, else the setting, else nothing."""
    url = os.environ.get("REPOSITORY_URL") or (config.get("repository") or {}).get("url") or ""
    if url and not re.fullmatch(r"https?://[^/\s?#]+(/[^/\s?#]+){2,}/?", url):
        raise BuildError(f"repository url: {url!r} is not of the form https://host/owner/name")
    return url.rstrip("/").removesuffix(".git")


def _add_buttons(config: dict[str, Any]) -> None:
    """Let the theme show launch, source and issue buttons where the address of the repository is known."""
    url = repository_url(config)
    config["repository"] = {**(config.get("repository") or {}), "url": url}
    if not url:
        return
    known = any(name in url.split("/")[2].lower() for name in ("github", "gitlab", "bitbucket"))
    options = config.setdefault("sphinx", {}).setdefault("config", {}).setdefault("html_theme_options", {})
    options |= {
        "repository_url": url,
        "repository_branch": config["repository"].get("branch", "main"),
        "path_to_docs": config["repository"].get("path_to_book", "book"),
        "use_repository_button": True,
        "use_source_button": True,
        "use_issues_button": True,
        # Binder sets the notebooks up from environment.yml. Colab would open them without the simulator and the data.
        "launch_buttons": {"notebook_interface": "jupyterlab", "binderhub_url": "https://mybinder.org"},
        **({} if known else {"repository_provider": "github"}),  # another host is taken to use GitHub's addresses
    }


def _copy_mathjax(folder: Path) -> None:
    """Put MathJax, fonts included, beside the pages: one file of an installed package."""
    files = importlib.metadata.files("sphinx-mathjax-offline") or []
    source = next((path for path in files if path.name == "tex-svg.js"), None)
    if source is None:
        raise BuildError("the package sphinx-mathjax-offline lacks tex-svg.js; run make setup")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(source.locate(), folder / "tex-svg.js")


def toc_pages(stage: Path) -> list[str]:
    """Every page that the table of contents names or that one of its patterns finds, without ending."""
    toc = yaml.safe_load((stage / "_toc.yml").read_text(encoding="utf-8"))
    pages, parts = [toc["root"]], [toc]
    while parts:
        part = parts.pop()
        parts += [entry for name in ("parts", "chapters", "sections") for entry in part.get(name) or []]
        if "file" in part:
            pages.append(part["file"])
        if "glob" in part:
            found = (path.relative_to(stage) for path in sorted(stage.glob(part["glob"])) if path.is_file())
            pages += [path.as_posix() for path in found if path != Path("studies", f"{TEMPLATE}.ipynb")]
    return sorted({page.removesuffix(".md").removesuffix(".ipynb") for page in pages})


def write_status(stage: Path, status: dict[str, Any]) -> None:
    """Fill the page ``status.md``: the line ``<!-- status -->`` becomes tables of what was run and with what."""
    target = stage / "status.md"
    if not target.is_file():
        return
    commit = status["commit"][:16] if status["commit"] else "unknown, no git metadata"
    lines = [
        "| | |",
        "| --- | --- |",
        f"| profile | {status['profile']} |",
        f"| commit | `{commit}`{', with uncommitted changes' if status['dirty'] else ''} |",
        *(f"| {name} | {number} |" for name, number in status["versions"].items()),
        "",
        "| chapter | seed | run time (s) | executed (UTC) | commit |",
        "| --- | --- | --- | --- | --- |",
    ]
    for run in status["chapters"]:
        short = (run["commit"] or "unknown")[:10] + ("+" if run["dirty"] else "")
        seed = run["parameters"].get("seed", "-")
        stem = run["chapter"]
        folder = "chapters" if (stage / "chapters" / f"{stem}.ipynb").is_file() else "studies"
        lines.append(
            f"| [{stem}]({folder}/{stem}.ipynb) | {seed} | {run['seconds']:.1f} | {run['finished'][:16]} | {short} |"
        )
    lines += ["", "A + marks a commit with uncommitted changes.", "", "## Parameters of each chapter", ""]
    for run in status["chapters"]:
        lines += [f"**{run['chapter']}**", "", "| parameter | value |", "| --- | --- |"]
        lines += [
            f"| `{name}` | `{json.dumps(value, ensure_ascii=False)}` |" for name, value in run["parameters"].items()
        ]
        lines.append("")
    text = target.read_text(encoding="utf-8").replace("<!-- status -->", "\n".join(lines))
    target.write_text(text, encoding="utf-8")


# ---------------------------------------------------------------------------------------------------- small things


@contextlib.contextmanager
def _lock(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Let one process at a time replace pages."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BuildError(f"another build writes to {_shown(path.parent)}; wait for it to end") from None
        yield


def _swap(html: Path, target: Path) -> None:
    """Replace a folder of pages by another: the old one stays until the new one is complete beside it."""
    new, old = target.with_name(f"{target.name}.new"), target.with_name(f"{target.name}.old")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(html, new)
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _finish_swap(target: Path) -> None:
    """Put the old pages back where a kill between the two renames of :func:`_swap` left none."""
    old = target.with_name(f"{target.name}.old")
    if old.exists() and not target.exists():
        old.rename(target)


def _slug(given: dict[str, Any], profile: str) -> str:
    """A folder name for a set of parameters: readable, and different for different sets."""
    if not given and profile == "full":
        return "defaults"
    words = "-".join([*([profile] if profile != "full" else []), *(f"{name}-{value}" for name, value in given.items())])
    digest = hashlib.sha256(json.dumps([profile, plain(given)], sort_keys=True).encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9.]+', '-', words)[:60].strip('-.')}-{digest}"


def _refuse(faults: list[str]) -> None:
    if faults:
        raise BuildError("\n".join(faults[:30]))


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _shown(path: Path) -> str:
    """A path as the caller would type it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _interrupt(*_) -> None:
    raise KeyboardInterrupt


def refuse_place(error: OSError) -> int:
    """Say where nothing can be written, in one line; any other error of the system is a fault of ours, and raised."""
    if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT):
        raise error
    print(f"error: {error.filename}: {os.strerror(error.errno).lower()}", file=sys.stderr)
    return 1


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status (1 for a failed build, 2 for bad usage, 130 when interrupted)."""
    parser = argparse.ArgumentParser(prog="book/build.py", description="Build the book, or one chapter of it.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("book", "pdf", "chapter"):
        command = commands.add_parser(name)
        command.add_argument("--profile", default="full", help=f"one of: {', '.join(PROFILES)}")
        if name == "chapter":
            command.add_argument("stem", metavar="CHAPTER")
            command.add_argument("parameters", nargs="?", default="", metavar="PARAMETERS")
    options = parser.parse_args(arguments)
    for name in (signal.SIGINT, signal.SIGTERM):  # a shell starts a job in the background with SIGINT ignored
        signal.signal(name, _interrupt)
    try:
        if options.command == "book":
            page = build_book(profile=options.profile)
        elif options.command == "pdf":
            page = build_pdf(profile=options.profile)
        else:
            page = build_chapter(options.stem, options.parameters, profile=options.profile)
    except (BuildError, ParameterError, PdfError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        return refuse_place(error)
    except KeyboardInterrupt:
        print("interrupted; finished chapters are kept, run the same command again to go on", file=sys.stderr)
        return 130
    print(f"{options.command}: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
