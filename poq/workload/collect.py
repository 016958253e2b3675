"""Collect a score log from a live network: ask the nodes, score what they answer, write the log.

``poq collect STUDY.toml`` calls `main`. Every reply is on disk, in a journal of JSON lines, the moment it arrives; a
collection that was stopped or killed goes on where it was, and nothing that was answered is asked twice.
"""

import argparse
import asyncio
import datetime
import hashlib
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from poq.escape import reveal
from poq.scorelog import COLUMNS, check_log
from poq.workload.asking import Request, ask_all
from poq.workload.build import write_table
from poq.workload.collect_report import report_text, summarise_endpoint
from poq.workload.evaluators import Context, Evaluator, MissingModelError, Output, blind, load_biencoder
from poq.workload.journal import KEPT, Journal, JournalError, hash_key, make_redact, open_journal
from poq.workload.judge_parsing import draw_codes, judge_prompt, read_score
from poq.workload.study import Endpoint, Item, Judge, Study, StudyError, api_key, digest_items, read_study
from poq.workload.truth import answer_match, token_f1

LOG, OUTPUTS, REPORT = "score_log.csv.gz", "outputs.jsonl", "report.json"
INCOMPLETE = 3  # exit code: the log is written, but something was not answered


# What to ask ---------------------------------------------------------------------------------------------------------


def _settings(endpoint: Endpoint) -> dict:
    """What decides an endpoint's replies; pace, patience and the key's name do not."""
    names = ("name", "base_url", "model", "max_tokens", "temperature", "system")
    return {name: getattr(endpoint, name) for name in names} | {"extra": dict(endpoint.extra)}


def answer_requests(study: Study) -> list[Request]:
    """One request per item and node, item by item."""
    return [
        Request(
            hash_key(kind="answer", **_settings(node), task=item.task, item=item.id, prompt=item.prompt),
            node,
            item.prompt,
            {"kind": "answer", "endpoint": node.name, "task": item.task, "item": item.id, "model": node.name},
        )
        for item in study.items
        for node in study.nodes
    ]


def judge_request(judge: Judge, item: Item, model: str, answer: str) -> Request:
    """The request for one judgement, under codes of its own."""
    fields = {
        "question": item.question, "context": item.context, "reference": "\n".join(item.answers), "answer": answer
    }  # fmt: skip
    rules = {"form": judge.form, "low": judge.low, "high": judge.high, "field": judge.field}
    key = hash_key(
        kind="judge", **_settings(judge.endpoint), template=judge.template, pattern=judge.pattern, rules=rules,
        task=item.task, item=item.id, answering=model, fields=fields,
    )  # fmt: skip
    mark, code = draw_codes()

    def read(text: str, cut: bool) -> dict:
        score, reason = read_score(text, code=code, pattern=judge.pattern, cut=cut, **rules)
        return {"status": "ok", "score": score} if score is not None else {"status": "unparsable", "reason": reason}

    return Request(
        key,
        judge.endpoint,
        judge_prompt(judge.template, fields, mark=mark, code=code, **rules),
        {
            "kind": "judge", "endpoint": judge.endpoint.name, "task": item.task, "item": item.id, "model": model,
            "code": code,
        },
        read,
    )  # fmt: skip


def judge_requests(study: Study, outputs: Sequence[Output]) -> list[Request]:
    """One request per judge and usable answer of its tasks."""
    items = {(item.task, item.id): item for item in study.items}
    return [
        judge_request(judge, items[output.task, output.item], output.model, output.text)
        for judge in study.judges
        for output in outputs
        if output.task in judge.tasks
    ]


def still_to_ask(requests: Sequence[Request], journal: Journal, *, again: bool = False) -> list[Request]:
    """The requests without a kept reply; with `again`, also those whose reply could not be used."""
    kept = ("ok",) if again else KEPT
    return [request for request in requests if journal.records.get(request.key, {}).get("status") not in kept]


# Scores --------------------------------------------------------------------------------------------------------------


def as_outputs(study: Study, records: Mapping[str, dict]) -> list[Output]:
    """The usable answers as evaluators read them, in the order of the requests."""
    items = {(item.task, item.id): item for item in study.items}
    usable = [
        (request.label, records[request.key]["text"])
        for request in answer_requests(study)
        if records.get(request.key, {}).get("status") == "ok"
    ]
    texts: dict[tuple, list] = {}
    for label, text in usable:
        texts.setdefault((label["task"], label["item"]), []).append((label["model"], text))
    outputs = []
    for label, text in usable:
        item = items[label["task"], label["item"]]
        others = tuple(other for name, other in texts[item.task, item.id] if name != label["model"])
        outputs.append(
            Output(item.task, item.id, label["model"], item.question, item.context, text, item.answers[0], others)
        )
    return outputs


def score_metrics(
    metrics: Mapping[str, Evaluator], study: Study, outputs: Sequence[Output], *, progress: bool = True
) -> tuple[list[dict], dict[str, Counter]]:
    """A row per metric and output, with the seconds it took, and the number of empty scores by reason."""
    # The texts that document frequencies are counted on: the passages, and the questions where there is none.
    passages = tuple(dict.fromkeys(item.context or item.question for item in study.items))
    context = Context(passages=passages, biencoder=study.encoder)
    rows, empty = [], {name: Counter() for name in metrics}
    bar = tqdm(metrics.items(), desc="metrics", unit="metric", file=sys.stderr, disable=not progress)
    for name, evaluator in bar:
        score = evaluator.fit(context)
        for output in outputs:
            if output.task not in evaluator.tasks:
                continue
            seen = output if evaluator.reference_based else blind(output)
            begun = time.perf_counter()
            try:
                value, reason = float(score(seen)), "not a finite number"
            except Exception as error:  # a program met a text it was not made for: the cell stays empty and is counted
                value, reason = math.nan, f"{type(error).__name__} in the metric"
            seconds = time.perf_counter() - begun
            if not math.isfinite(value):
                value = math.nan
                empty[name][reason] += 1
            rows.append(_row(output, name, value, seconds, evaluator.reference_based))
    return rows, empty


def _row(output: Output, evaluator: str, score: float, seconds: float, reference_based: bool) -> dict:
    return {
        "task": output.task, "item": output.item, "model": output.model, "evaluator": evaluator, "score": score,
        "seconds": seconds, "reference_based": reference_based,
    }  # fmt: skip


def judge_rows(study: Study, outputs: Sequence[Output], records: Mapping[str, dict]) -> list[dict]:
    """A row per judge and output; the score is empty where the judge did not answer or could not be understood."""
    by_cell = {(output.task, output.item, output.model): output for output in outputs}
    marks = {judge.endpoint.name: judge.reference_based for judge in study.judges}
    rows = []
    for request in judge_requests(study, outputs):
        record, label = records.get(request.key, {}), request.label
        score = record["score"] if record.get("status") == "ok" else math.nan
        seconds = record.get("latency")
        output = by_cell[label["task"], label["item"], label["model"]]
        name = label["endpoint"]
        rows.append(_row(output, name, score, math.nan if seconds is None else seconds, marks[name]))
    return rows


def truths(item: Item, text: str) -> tuple[float, float]:
    """Both truths of an answer on 0 to 10: token F1, and acceptable-answer match (NaN for a summary)."""
    match = 10 * answer_match(text, item.answers) if item.task == "qa" else math.nan
    return 10 * token_f1(text, item.answers), match


def assemble(study: Study, outputs: Sequence[Output], rows: Sequence[Mapping], records: Mapping[str, dict]):
    """The score log: costs are medians of measured seconds, per (task, model) and per (task, evaluator)."""
    items = {(item.task, item.id): item for item in study.items}
    latency = {
        (r.label["task"], r.label["item"], r.label["model"]): records[r.key]["latency"]
        for r in answer_requests(study)
        if records.get(r.key, {}).get("status") == "ok"
    }
    truth = {(o.task, o.item, o.model): truths(items[o.task, o.item], o.text) for o in outputs}
    log = pd.DataFrame(rows)
    cells = list(zip(log["task"], log["item"], log["model"]))
    log["truth"] = [round(truth[cell][0], 6) for cell in cells]
    log["truth_alt"] = [round(truth[cell][1], 6) for cell in cells]
    log["score"] = log["score"].astype(float).round(6) + 0.0
    log["cost"] = log.groupby(["task", "evaluator"])["seconds"].transform("median")
    taken = pd.Series([latency[cell] for cell in cells], dtype=float)
    # Each output stands once per evaluator, and not always as often: the median is over outputs.
    first = ~log.duplicated(["task", "item", "model"])
    usual = taken[first].groupby([log["task"][first], log["model"][first]]).median()
    log["model_cost"] = [usual[task, model] for task, _, model in cells]
    for column in ("cost", "model_cost"):
        log[column] = [float(f"{value:.3g}") for value in log[column]]
    log["reference_based"] = ["true" if mark else "false" for mark in log["reference_based"]]
    absent = {"split"} | ({"truth_alt"} if log["truth_alt"].isna().all() else set())
    columns = [column for column in COLUMNS if column not in absent]
    log = log[columns].sort_values(["task", "item", "model", "evaluator"], ignore_index=True)
    check_log(log)
    return log


def write_text(text: str, path: Path) -> None:
    """Write a text whole or not at all."""
    begun = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        begun.write_text(text, encoding="utf-8")
        os.replace(begun, path)
    finally:
        begun.unlink(missing_ok=True)


def outputs_text(study: Study, records: Mapping[str, dict]) -> str:
    """All that was asked of the nodes as JSON lines: texts, or what came instead, with truths, latencies and tokens."""
    items = {(item.task, item.id): item for item in study.items}
    lines = []
    for request in answer_requests(study):
        record = records.get(request.key, {"status": "not asked"})
        truth = (
            truths(items[request.label["task"], request.label["item"]], record["text"])
            if record["status"] == "ok"
            else ()
        )
        names = ("status", "reason", "text", "raw", "finish", "latency", "prompt_tokens", "completion_tokens", "tries")
        entry = {key: request.label[key] for key in ("task", "item", "model")}
        entry |= {name: record[name] for name in names if record.get(name) not in (None, "")}
        entry |= {name: value for name, value in zip(("truth", "truth_alt"), truth) if not math.isnan(value)}
        lines.append(json.dumps(entry))
    return "".join(f"{line}\n" for line in lines)


# The command ---------------------------------------------------------------------------------------------------------


def collect(
    study: Study, *, again: bool = False, say: Callable[[str], None] = print, progress: bool = True
) -> tuple[dict, int]:
    """Run a checked study to its end; the report and the exit code.

    Raises
    ------
    JournalError
        If the results folder cannot be used.
    KeyboardInterrupt
        If stopped; what arrived is on disk.
    """
    endpoints = [*study.nodes, *(judge.endpoint for judge in study.judges)]
    redact = make_redact(key for key in map(api_key, endpoints) if key)
    begun = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with open_journal(study.folder, study=study.path.name) as journal:
        answers = answer_requests(study)
        before = set(journal.records)
        missing = still_to_ask(answers, journal, again=again)
        say(f"answers: {len(missing)} to ask, {len(answers) - len(missing)} on disk")
        silent_nodes = _run(missing, journal, redact, "answers", len(answers) - len(missing))
        asked = {request.key for request in missing if request.key in journal.records}
        outputs = as_outputs(study, journal.records)
        judging = judge_requests(study, outputs)
        missing = still_to_ask(judging, journal, again=again)
        if judging:
            say(f"judgements: {len(missing)} to ask, {len(judging) - len(missing)} on disk")
        silent_judges = _run(missing, journal, redact, "judgements", len(judging) - len(missing))
        asked |= {request.key for request in missing if request.key in journal.records}
        rows, empty = score_metrics(study.metrics, study, outputs, progress=progress)
        rows += judge_rows(study, outputs, journal.records)
        records = journal.records
        if rows:
            write_table(assemble(study, outputs, rows, records), study.folder / LOG)
        write_text(outputs_text(study, records), study.folder / OUTPUTS)
        nodes = [summarise_endpoint(node, answers, asked, records, silent_nodes) for node in study.nodes]
        judges = [summarise_endpoint(judge.endpoint, judging, asked, records, silent_judges) for judge in study.judges]
        evaluators = {
            name: {"scores": 0, "empty": dict(empty.get(name, {}))}
            for name in [*study.metrics, *(judge.endpoint.name for judge in study.judges)]
        }
        for row in rows:
            evaluators[row["evaluator"]]["scores"] += not math.isnan(row["score"])
        for entry in judges:
            counts = Counter(entry["malformed"]) + Counter(entry["unparsable"]) + Counter(entry["failed"])
            evaluators[entry["name"]]["empty"] = dict(counts + Counter({"not asked": entry["not_asked"]}))
        used = {request.key for request in (*answers, *judging)}
        report = {
            "study": study.path.name,
            "study_digest": hashlib.sha256(study.path.read_bytes()).hexdigest()[:16],
            "data_digest": digest_items(study.items),
            "begun": begun,
            "ended": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": {"python": platform.python_version()}
            | {name: _version(name) for name in ("proof-of-quality-book", "openai")},
            "torn_lines": journal.torn,
            "other_records": len(before - used),
            "nodes": nodes,
            "judges": judges,
            "evaluators": evaluators,
            "outputs": len(outputs),
            "outputs_wanted": len(answers),
            "rows": len(rows),
        }
        write_text(redact(json.dumps(report, indent=1)) + "\n", study.folder / REPORT)
    incomplete = any(entry["failed"] or entry["not_asked"] for entry in (*nodes, *judges))
    return report, 1 if not rows else INCOMPLETE if incomplete else 0


def _run(requests: Sequence[Request], journal: Journal, redact: Callable[[str], str], what: str, done: int) -> dict:
    if not requests:
        return {}
    try:
        return asyncio.run(ask_all(requests, journal, redact=redact, what=what, done=done))
    except BaseExceptionGroup as group:  # one worker's error has ended the others; it says why, the group does not
        raise group.exceptions[0] from None


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def plan_text(study: Study) -> str:
    """What a study would do, as lines of text."""
    tasks = Counter(item.task for item in study.items)
    lines = [f"{study.path}: a valid study", f"items: {', '.join(f'{task} {n}' for task, n in sorted(tasks.items()))}"]
    lines += [f"node {node.name}: {node.model} at {node.base_url}" for node in study.nodes]
    lines += [f"metric {name}: {entry.description}" for name, entry in study.metrics.items()]
    for judge in study.judges:
        mark = "reads the reference" if judge.reference_based else "reads no reference"
        lines.append(f"judge {judge.endpoint.name}: {judge.endpoint.model} at {judge.endpoint.base_url}, {mark}")
    judged = sum(tasks[task] for judge in study.judges for task in judge.tasks) * len(study.nodes)
    lines.append(
        f"requests: {len(study.items) * len(study.nodes)} for answers, at most {judged} for judgements, "
        f"less what is on disk in {study.folder}"
    )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of ``poq collect``: 0 done, 1 bad study or no answer, 2 wrong usage, 3 incomplete, 130 stopped."""
    parser = argparse.ArgumentParser(prog="poq collect", description="Collect a score log from a live network.")
    parser.add_argument("study", type=Path, metavar="STUDY.toml", help="what to ask whom, and how to score it")
    parser.add_argument("--dry-run", action="store_true", help="check everything, say what would be asked, ask nothing")
    parser.add_argument(
        "--ask-again", action="store_true", help="ask once more where a reply was malformed or a score unreadable"
    )
    options = parser.parse_args(argv)
    redact = make_redact(())
    try:
        study = read_study(options.study)
        redact = make_redact(
            key for key in map(api_key, [*study.nodes, *(judge.endpoint for judge in study.judges)]) if key
        )
        if any(entry.needs_model for entry in study.metrics.values()):
            load_biencoder(study.encoder)
        if options.dry_run:
            print(plan_text(study))
            return 0
        if importlib.util.find_spec("openai") is None:
            raise StudyError("the package openai is absent; install the extra: pip install -e '.[collect]'")
        report, code = collect(study, again=options.ask_again)
    except (StudyError, JournalError, MissingModelError, OSError) as error:
        print(f"poq collect: {redact(reveal(str(error), limit=1000))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "\nstopped; every reply that arrived is on disk, and the same command goes on from there", file=sys.stderr
        )
        return 130
    except Exception:  # an error of ours may carry a request with its key: it is shown without
        print(redact(traceback.format_exc()), file=sys.stderr)
        return 1
    print(redact(report_text(report)))
    print(f"results: {study.folder}")
    if code == INCOMPLETE:
        print("incomplete: the same command asks again for what failed", file=sys.stderr)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
