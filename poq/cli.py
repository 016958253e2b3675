"""The command ``poq``: check, import, make or collect a score log, list the chapters, begin a study."""

from __future__ import annotations

import argparse
import os
import sys
import warnings

from poq import importing
from poq.chapters import ParameterError, create_study, find_chapter, list_notebooks, read_parameters


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return 0 for success, 1 for bad input, 2 for wrong usage, 130 when interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="poq", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    check = commands.add_parser("check", help="check a score log and say what is in it")
    check.add_argument("log", metavar="LOG", help="a file that ends in .csv, .csv.gz or .parquet")
    bring = commands.add_parser("import", help="turn another table into a score log")
    importing.add_arguments(bring)
    chapters = commands.add_parser("chapters", help="list the chapters and studies with their parameters")
    chapters.add_argument("chapter", nargs="?", metavar="CHAPTER", help="only this one")
    study = commands.add_parser("study", help="begin a study of your own in book/studies")
    study.add_argument("name", metavar="NAME", help="such as my-network")
    commands.add_parser("workload", help="make the shipped score log again", add_help=False)
    commands.add_parser("collect", help="collect a score log from a live network", add_help=False)
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in ("workload", "collect"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        if options.command == "check":
            return check_log(options.log)
        if options.command == "import":
            return import_table(options)
        if options.command == "chapters":
            return show_chapters(options.chapter)
        if options.command == "study":
            return make_study(options.name)
        if options.command == "collect":
            from poq.workload.collect import main as collect  # late: it needs the extra `workload`

            return collect(rest)
        from poq.workload.build import main as make_workload  # late: it needs the extra `workload`

        return make_workload(rest) or 0
    except BrokenPipeError:  # the reader of our output has seen enough, as in `poq chapters | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def import_table(options) -> int:
    """Turn a table into a score log and say what came of it."""
    from poq.scorelog import ScoreLogError

    try:
        print(_shown(importing.import_log(options)))
    except (ScoreLogError, OSError) as error:
        return _refuse(error)
    print(f"see what is in it: {_shown(sys.argv[0])} check {_shown(options.target)}")
    return 0


def check_log(path: str) -> int:
    """Print what a score log holds; warnings are part of a valid log."""
    import numpy as np

    from poq.scorelog import ScoreLogError, read_score_log, reference_free, score_matrix, tasks

    try:
        log = read_score_log(path)
    except (ScoreLogError, OSError) as error:
        return _refuse(error)
    print(f"{path}: a valid score log, {len(log):,} rows")
    for name in ("cost", "model_cost"):
        known = int(log[name].notna().sum()) if name in log else 0
        if known < len(log):
            print(f"note: column '{name}' is {f'known in {known:,} rows' if known else _absence(log, name)}")
    for task in tasks(log):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            try:
                matrix = score_matrix(log, task=task)
            except ValueError as error:
                return _refuse(error)
        cells = matrix.values.size
        missing = int(np.isnan(matrix.values).sum())
        print(
            f"\ntask {_shown(task)}: {_count(len(matrix.items), 'item')}, {_count(len(matrix.models), 'model')}, "
            f"{_count(len(matrix.truth), 'output')}, {_count(len(matrix.evaluators), 'evaluator')}, "
            f"{missing:,} of {cells:,} cells missing"
        )
        print(_evaluator_table(log[log["task"] == task], matrix))
        truth = log.loc[log["task"] == task, "truth"]
        if truth.min() == truth.max():
            print(f"warning: the truth is {truth.iloc[0]:g} for every output; correlations are undefined")
        for warning in caught:
            print(f"warning: {_shown(str(warning.message))}")
        print(_uses(matrix))
    for column, lost in OPTIONAL.items():
        if column not in log or log[column].isna().all():
            print(f"note: column '{column}' is {_absence(log, column)}; {lost}")
    if "reference_based" in log:
        try:
            reference_free(log)
        except ValueError as error:
            print(f"note: {_shown(str(error))}; chapters show the full pool alone")
    return 0


OPTIONAL = {
    "reference_based": "evaluators that read the reference cannot be told apart, so chapters show the full pool alone",
    "truth_alt": "chapters show verdicts under one truth alone",
}


def _absence(log, name: str) -> str:
    return "empty" if name in log else "not there"


def _uses(matrix) -> str:
    """What the simulator can do with a task: the committees it can fill, and from how many outputs."""
    import numpy as np

    scored = (~np.isnan(matrix.values)).sum(axis=1)
    largest = len(matrix.evaluators)
    sizes = [size for size in (1, 3, 5, 9, 15, 21) if size < largest] + [largest]
    filled = [(size, int((scored >= size).sum())) for size in sizes]
    counts = ", ".join(f"{size} from {count:,}" for size, count in filled if count >= 2)
    if not counts:
        return "  cannot be simulated: fewer than 2 outputs have a score"
    return f"  committees it can fill (size from outputs): {counts}"


def _evaluator_table(rows, matrix) -> str:
    """One line per evaluator: how much it scored, on which scale, and how it goes with the truth."""
    import numpy as np

    from poq.matrix import correlations

    raw = rows.groupby("evaluator")["score"]
    low, middle, high = raw.min(), raw.mean(), raw.max()
    width = max(9, *(len(_shown(name)) for name in matrix.evaluators))
    lines = [f"  {'evaluator':<{width}}  {'scored':>8}  {'least':>9}  {'mean':>9}  {'largest':>9}  {'r':>6}"]
    for column, (name, r) in enumerate(zip(matrix.evaluators, correlations(matrix))):
        scored = int((~np.isnan(matrix.values[:, column])).sum())
        numbers = f"{low[name]:>9.4g}  {middle[name]:>9.4g}  {high[name]:>9.4g}  {r:>6.2f}"
        lines.append(f"  {_shown(name):<{width}}  {scored:>8,}  {numbers}")
    return "\n".join(lines)


def show_chapters(chapter: str | None = None) -> int:
    """Print every chapter and study with its parameters: name, type, default, meaning, as the notebooks say."""
    try:
        found = {chapter: find_chapter(chapter)} if chapter else list_notebooks()
        for stem, path in found.items():
            parameters = read_parameters(path).values()
            print(stem)
            signatures = [f"{entry.name}: {entry.kind} = {entry.default!r}" for entry in parameters]
            width = min(60, max(map(len, signatures), default=0))
            for entry, signature in zip(parameters, signatures):
                print(f"  {signature:<{width}}  {entry.help}".rstrip())
            print()
    except ParameterError as error:
        return _refuse(error)
    if not found:
        print("there is no chapter", file=sys.stderr)
    return 0


def make_study(name: str) -> int:
    """Begin a study from the template and say how to go on."""
    try:
        path = create_study(name)
    except ParameterError as error:
        return _refuse(error)
    print(f"study: {path}")
    print(f"open it: make lab; run it: make chapter CHAPTER={name}; it is in the book from the next make book on")
    return 0


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _shown(text: str) -> str:
    """Text from a log without control characters, which could rewrite a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _refuse(error: Exception) -> int:
    print(f"error: {_shown(' '.join(str(error).split()))}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
