"""Make the shipped score log: let the systems write, let the evaluators score, time both, write three tables.

``poq workload`` calls `main`. Everything but the latencies comes out the same on every run.
"""

import argparse
import gzip
import hashlib
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits  # a hard dependency of scikit-learn
from tqdm import tqdm

from poq.scorelog import COLUMNS
from poq.workload.answerers import ANSWERERS
from poq.workload.corpus import CORPUS, CorpusError, Passage, load_corpus
from poq.workload.evaluators import (
    EVALUATORS,
    Context,
    Evaluator,
    MissingModelError,
    Output,
    blind,
    load_biencoder,
)
from poq.workload.summarisers import SUMMARISERS
from poq.workload.truth import answer_match, fact_coverage, token_f1

DATA = Path(__file__).parents[2] / "book" / "data"
LOG, OUTPUTS, CARD = "score_log.csv.gz", "outputs.csv.gz", "evaluators.csv"
FOLDS = 5
REPEATS = 5
TIMED_OUTPUTS = 60
KEYS = ["task", "item", "model"]
# Committed scores and new ones may differ by this much: rounding, and 32-bit arithmetic inside the bi-encoder.
TOLERANCE = {"biencoder_ref": 1e-3, "biencoder_source": 1e-3}
DEFAULT_TOLERANCE = 2e-6


def split_passages(passages: Sequence[Passage]) -> dict[str, str]:
    """ "train" or "test" for each passage id: of each genre, every third passage in the order of a hash trains."""
    split = {}
    for genre in sorted({passage.genre for passage in passages}):
        ids = _shuffled([passage.id for passage in passages if passage.genre == genre])
        split |= {name: "train" if place % 3 == 0 else "test" for place, name in enumerate(ids)}
    return split


def fold_passages(passages: Sequence[Passage]) -> dict[str, int]:
    """Fold 0 to 4 of each passage id, for cross-fitting the systems that learn."""
    return {name: place % FOLDS for place, name in enumerate(_shuffled([passage.id for passage in passages]))}


def _shuffled(ids: Sequence[str]) -> list[str]:
    """`ids` in an order that looks random but hangs on the ids alone."""
    return sorted(ids, key=lambda name: hashlib.sha256(name.encode()).hexdigest())


def write_outputs(passages: Sequence[Passage], *, repeats: int = REPEATS, progress: bool = True) -> pd.DataFrame:
    """All systems' outputs for all items, cross-fitted by passage, with truths and latencies.

    Parameters
    ----------
    passages : sequence of Passage
        At least `FOLDS` of them.
    repeats : int
        Times that each output is made again for its latency; the median is kept.

    Returns
    -------
    DataFrame
        One row per (task, item, model), sorted: question (the title for a summary), output, reference, latency in
        seconds, truth and truth_alt in [0, 10], split, passage (its id).
    """
    fold, split = fold_passages(passages), split_passages(passages)
    systems = [("qa", *pair) for pair in ANSWERERS.items()] + [("summarisation", *pair) for pair in SUMMARISERS.items()]
    jobs = [(number, *system) for number in range(FOLDS) for system in systems]
    rows = []
    for number, task, name, fit in tqdm(jobs, desc="systems", unit="fit", disable=not progress):
        system = fit([passage for passage in passages if fold[passage.id] != number])
        for passage in (passage for passage in passages if fold[passage.id] == number):
            for item, prompt, reference, grade in _items(task, passage):
                text, latency = _timed(partial(system, prompt, passage.text), repeats)
                row = (task, item, name, prompt, text, reference, latency, *grade(text), split[passage.id], passage.id)
                rows.append(row)
    columns = [*KEYS, "question", "output", "reference", "latency", "truth", "truth_alt", "split", "passage"]
    return pd.DataFrame(rows, columns=columns).sort_values(KEYS, ignore_index=True)


def _items(task: str, passage: Passage):
    """(item, prompt, reference, grade) of each item of a passage; `grade(text)` gives both truths on 0 to 10."""
    if task == "qa":
        for entry in passage.questions:
            yield (
                entry.id,
                entry.question,
                entry.answers[0],
                lambda text, entry=entry: (
                    10 * token_f1(text, entry.answers),
                    10 * answer_match(text, entry.answers),
                ),
            )
    else:
        yield (
            passage.id,
            passage.title,
            passage.summary,
            lambda text: (
                10 * token_f1(text, [passage.summary]),
                10 * fact_coverage(text, passage.facts),
            ),
        )


def _timed(call: Callable, repeats: int):
    """The call's result and its median duration in seconds over `repeats` runs after the first.

    The duration is processor time, which other work on the machine does not lengthen; on an idle machine it is the
    wall-clock time of these single-threaded programs.
    """
    result = call()
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return result, float(np.median(seconds)) if seconds else float("nan")


def as_outputs(frame: pd.DataFrame, passages: Sequence[Passage]) -> list[Output]:
    """The rows of `write_outputs` as evaluators read them, in the same order."""
    texts = {passage.id: passage.text for passage in passages}
    siblings = {key: list(zip(group["model"], group["output"])) for key, group in frame.groupby(["task", "item"])}
    return [
        Output(
            task=row.task,
            item=row.item,
            model=row.model,
            prompt=row.question,
            passage=texts[row.passage],
            text=row.output,
            reference=row.reference,
            others=tuple(text for name, text in siblings[row.task, row.item] if name != row.model),
        )
        for row in frame.itertuples(index=False)
    ]


def score_outputs(
    frame: pd.DataFrame,
    passages: Sequence[Passage],
    evaluators: Sequence[Evaluator],
    *,
    biencoder: str | None = None,
    repeats: int = REPEATS,
    progress: bool = True,
) -> pd.DataFrame:
    """Scores of `evaluators` for the outputs in `frame`: task, item, model, evaluator, score, cost.

    A learned judge is taught with the training split and scores only the rest. `cost` is the median time of one
    score in seconds, over `TIMED_OUTPUTS` outputs of the task, each scored `repeats` times.
    """
    parts = []
    outputs = as_outputs(frame, passages)
    jobs = [(task, evaluator) for evaluator in evaluators for task in evaluator.tasks]
    for task, evaluator in tqdm(jobs, desc="evaluators", unit="evaluator", disable=not progress):
        mine = frame.index[(frame["task"] == task)]
        taught = [place for place in mine if frame["split"][place] == "train"]
        context = Context(
            passages=tuple(passage.text for passage in passages),
            training=tuple(blind(outputs[place]) for place in taught),
            truth=tuple(frame["truth"][taught]),
            truth_alt=tuple(frame["truth_alt"][taught]),
            biencoder=biencoder,
        )
        if evaluator.learned:
            mine = [place for place in mine if frame["split"][place] == "test"]
        score = evaluator.fit(context)
        seen = [outputs[place] if evaluator.reference_based else blind(outputs[place]) for place in mine]
        values = [score(output) for output in seen]
        sample = seen[:: max(len(seen) // TIMED_OUTPUTS, 1)]
        cost = np.median([_timed(partial(score, output), repeats)[1] for output in sample]) if sample else np.nan
        part = frame.loc[mine, KEYS].assign(evaluator=evaluator.name, score=values, cost=cost)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def reuse_scores(names: Sequence[str], frame: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Committed scores of the evaluators `names` for the outputs of `frame` whose texts have not changed since."""
    empty = pd.DataFrame({key: [] for key in [*KEYS, "evaluator", "score", "cost"]})
    if not ((folder / LOG).exists() and (folder / OUTPUTS).exists()):
        return empty
    log, old = _read(folder / LOG), _read(folder / OUTPUTS)
    same = frame.merge(old[[*KEYS, "digest"]], on=[*KEYS, "digest"])
    kept = log[log["evaluator"].isin(names)].merge(same[KEYS], on=KEYS)
    return kept[[*KEYS, "evaluator", "score", "cost"]]


def digest(output: Output) -> str:
    """Fingerprint of all texts of an output that an evaluator may read, but for the other systems' outputs."""
    texts = "\0".join((output.prompt, output.passage, output.reference, output.text))
    return hashlib.sha256(texts.encode()).hexdigest()[:12]


def assemble(frame: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """The score log: `scores` joined with truths, costs, marks and split, sorted, sensibly rounded."""
    marks = {evaluator.name: int(evaluator.reference_based) for evaluator in EVALUATORS}
    usual = (
        frame.groupby(["task", "model"], as_index=False)["latency"].median().rename(columns={"latency": "model_cost"})
    )
    log = scores.merge(frame[[*KEYS, "truth", "truth_alt", "split"]], on=KEYS).merge(usual, on=["task", "model"])
    log["reference_based"] = log["evaluator"].map(marks)
    log["score"] = _rounded(log)
    log["truth"], log["truth_alt"] = log["truth"].round(6), log["truth_alt"].round(6)
    for column in ("cost", "model_cost"):
        log[column] = [float(f"{value:.3g}") for value in log[column]]
    return log[[*COLUMNS]].sort_values([*KEYS, "evaluator"], ignore_index=True)


def _rounded(log: pd.DataFrame) -> pd.Series:
    """Scores to 6 places, those of the 32-bit network to 4; minus zero becomes zero."""
    coarse = log["evaluator"].isin(list(TOLERANCE))
    return log["score"].round(4).where(coarse, log["score"].round(6)) + 0.0


def evaluator_card() -> pd.DataFrame:
    """One row per (task, evaluator): its mark, what it reads, the library, the description."""
    rows = [
        (task, e.name, int(e.reference_based), e.reads, e.library, e.description)
        for e in EVALUATORS
        for task in e.tasks
    ]
    columns = ["task", "evaluator", "reference_based", "reads", "library", "description"]
    return pd.DataFrame(rows, columns=columns).sort_values(["task", "evaluator"], ignore_index=True)


def _read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False, na_values={"score": [""], "cost": [""], "latency": [""]})


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write CSV (gzipped where the name ends in .gz), the same bytes for the same table, whole or not at all."""
    text = table.to_csv(index=False, lineterminator="\n").encode()
    if path.name.endswith(".gz"):
        buffer = io.BytesIO()
        with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0, filename="") as stream:
            stream.write(text)
        text = buffer.getvalue()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def build(
    passages: Sequence[Passage],
    *,
    committed: Path = DATA,
    biencoder: str | None = None,
    repeats: int = REPEATS,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> Mapping[str, pd.DataFrame]:
    """The three tables by file name.

    Without a bi-encoder its scores in `committed` are kept where the texts that it reads are unchanged.
    """
    cheap = [evaluator for evaluator in EVALUATORS if not evaluator.needs_model]
    heavy = [evaluator for evaluator in EVALUATORS if evaluator.needs_model]
    try:
        load_biencoder(biencoder)
        reason = None
    except MissingModelError as error:
        if biencoder is not None:
            raise
        reason = str(error)
    scored = cheap if reason else cheap + heavy
    with threadpool_limits(limits=1):  # one thread: the same sums and comparable latencies on every machine
        frame = write_outputs(passages, repeats=repeats, progress=progress)
        frame["digest"] = [digest(output) for output in as_outputs(frame, passages)]
        scores = score_outputs(frame, passages, scored, biencoder=biencoder, repeats=repeats, progress=progress)
    if reason:
        kept = reuse_scores([evaluator.name for evaluator in heavy], frame, committed)
        scores = pd.concat([scores, kept], ignore_index=True) if len(kept) else scores
        lost = len(heavy) * len(frame) - len(kept)
        say(reason)
        say(f"  kept {len(kept)} committed scores whose texts are unchanged; {lost} cells stay missing")
    outputs = frame[[*KEYS, "question", "output", "reference", "latency", "digest"]].copy()
    outputs["latency"] = [float(f"{value:.3g}") for value in outputs["latency"]]
    return {LOG: assemble(frame, scores), OUTPUTS: outputs, CARD: evaluator_card()}


def compare(new: pd.DataFrame, old: pd.DataFrame) -> list[str]:
    """Differences between two score logs, latencies aside, as lines of text; none if the logs agree."""
    keys = [*KEYS, "evaluator"]
    both = new.merge(old, on=keys, how="outer", suffixes=("", "_old"), indicator=True)
    lines = []
    for side, what in (("left_only", "not in the committed log"), ("right_only", "only in the committed log")):
        rows = both[both["_merge"] == side]
        if len(rows):
            first = ", ".join(map(str, rows.iloc[0][keys]))
            lines.append(f"{len(rows)} rows are {what}; the first: {first}")
    both = both[both["_merge"] == "both"]
    allowed = both["evaluator"].map(TOLERANCE).fillna(DEFAULT_TOLERANCE)
    for column in ("score", "truth", "truth_alt"):
        limit = allowed if column == "score" else DEFAULT_TOLERANCE
        gap = (both[column] - both[f"{column}_old"]).abs()
        wrong = both[(gap > limit) | (both[column].isna() != both[f"{column}_old"].isna())]
        if len(wrong):
            first = wrong.iloc[0]
            where = ", ".join(map(str, first[keys]))
            values = f"{first[column]} against {first[f'{column}_old']}"
            lines.append(f"{len(wrong)} values of {column} differ; the first: {where}: {values}")
    for column in ("reference_based", "split"):
        wrong = both[both[column] != both[f"{column}_old"]]
        if len(wrong):
            lines.append(f"{len(wrong)} values of {column} differ")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of ``poq workload``; returns the exit code."""
    parser = argparse.ArgumentParser(prog="poq workload", description="Make the shipped score log again.")
    parser.add_argument("--out", type=Path, default=DATA, metavar="FOLDER", help="where to write (default: book/data)")
    parser.add_argument("--corpus", type=Path, default=CORPUS, metavar="FOLDER", help="folder of passages (*.toml)")
    parser.add_argument("--biencoder", metavar="MODEL", help="hub id or folder of a sentence-transformers model")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; compare with the log in --out, exit 1 if it differs"
    )
    options = parser.parse_args(argv)
    try:
        passages = load_corpus(options.corpus)
        if len(passages) < FOLDS:
            raise CorpusError(f"{options.corpus}: cross-fitting needs at least {FOLDS} passages, found {len(passages)}")
        if options.check and not (options.out / LOG).exists():
            raise CorpusError(f"{options.out / LOG}: no log to compare with")
        if not options.check:
            options.out.mkdir(parents=True, exist_ok=True)
        committed = options.out if (options.out / LOG).exists() else DATA
        tables = build(
            passages, committed=committed, biencoder=options.biencoder, repeats=0 if options.check else REPEATS
        )
    except (CorpusError, MissingModelError, OSError) as error:
        print(f"poq workload: {error}", file=sys.stderr)
        return 1
    if options.check:
        lines = compare(tables[LOG], _read(options.out / LOG))
        print("\n".join(lines) if lines else f"{options.out / LOG}: {len(tables[LOG])} scores made again, all equal")
        return 1 if lines else 0
    for name, table in tables.items():
        write_table(table, options.out / name)
        print(f"{options.out / name}: {len(table)} rows")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
