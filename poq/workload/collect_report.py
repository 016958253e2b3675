"""What a collection got from each endpoint: counts from which nothing that was wanted is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from poq.escape import reveal
from poq.workload.asking import Request
from poq.workload.journal import KEPT
from poq.workload.study import Endpoint


def summarise_endpoint(
    endpoint: Endpoint, requests: Sequence[Request], asked: set[str], records: Mapping[str, dict], given_up: Mapping
) -> dict:
    """Counts of one endpoint: nothing that was wanted is missing from them."""
    mine = [request for request in requests if request.endpoint.name == endpoint.name]
    found = [records[request.key] for request in mine if request.key in records]
    trouble: Counter = Counter()
    for record in found:
        trouble.update(record.get("trouble") or {})
    status = Counter(record["status"] for record in found)
    seconds = [record["latency"] for record in found if record["status"] in KEPT and record["latency"] is not None]
    tokens = {
        kind: [record[kind] for record in found if record.get(kind) is not None]
        for kind in ("prompt_tokens", "completion_tokens")
    }
    unusable = [record for record in found if record["status"] != "ok"]
    return {
        "name": endpoint.name,
        "wanted": len(mine),
        "asked_now": sum(request.key in asked for request in mine),
        "usable": status["ok"],
        "malformed": _reasons(found, "malformed"),
        "unparsable": _reasons(found, "unparsable"),
        "failed": _reasons(found, "failed"),
        "not_asked": len(mine) - len(found),
        "given_up": given_up.get(endpoint.name, (None,))[0],
        "retried": dict(trouble),
        "cut_at_max_tokens": sum(record.get("finish") == "length" for record in found),
        "key_echoed": sum(bool(record.get("key_echoed")) for record in found),
        "latency_median": float(np.median(seconds)) if seconds else None,
        "latency_95": float(np.quantile(seconds, 0.95)) if seconds else None,
        "tokens_known": len(tokens["completion_tokens"]),
        **{kind: sum(values) for kind, values in tokens.items()},
        "examples": _examples(unusable),
    }


def _reasons(found: Sequence[Mapping], status: str) -> dict[str, int]:
    return dict(Counter(record["reason"] for record in found if record["status"] == status))


def _examples(unusable: Sequence[Mapping]) -> dict[str, str]:
    """The first reply of each kind that could not be used, so that a reader sees what came."""
    shown: dict[str, str] = {}
    for record in unusable:
        shown.setdefault(record["reason"], reveal(record.get("text") or record.get("raw") or "", limit=160))
    return shown


def _times(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} ({number})" for reason, number in sorted(counts.items()))


def endpoint_lines(entry: Mapping, what: str) -> list[str]:
    """One endpoint's counts as lines of text."""
    head = (
        f"{what} {entry['name']}: {entry['usable']} of {entry['wanted']} replies usable, {entry['asked_now']} asked now"
    )
    lines = [head]
    for status in ("malformed", "unparsable", "failed"):
        if entry[status]:
            lines.append(f"  {status}: {_times(entry[status])}")
    if entry["given_up"]:
        lines.append(f"  given up: {entry['given_up']}")
    if entry["not_asked"]:
        lines.append(f"  not asked: {entry['not_asked']}")
    if entry["retried"]:
        lines.append(f"  tries that failed: {_times(entry['retried'])}")
    if entry["cut_at_max_tokens"]:
        lines.append(f"  cut at max_tokens: {entry['cut_at_max_tokens']}")
    if entry["key_echoed"]:
        lines.append(
            f"  warning: it sent the key back in {entry['key_echoed']} replies; removed, but consider a new key"
        )
    if entry["latency_median"] is not None:
        tokens = f"{entry['prompt_tokens']:,} prompt and {entry['completion_tokens']:,} completion tokens"
        lines.append(
            f"  latency: median {entry['latency_median']:.3f} s, 95 % {entry['latency_95']:.3f} s; "
            f"{tokens} (known for {entry['tokens_known']})"
        )
    lines += [f"  first reply of the kind '{reason}': {text}" for reason, text in entry["examples"].items() if text]
    return lines


def report_text(report: Mapping) -> str:
    """The report as text for a terminal."""
    lines = []
    if report["torn_lines"]:
        lines.append(f"journal: {report['torn_lines']} unreadable lines, left in place; what they held was asked again")
    if report["other_records"]:
        lines.append(
            f"journal: {report['other_records']} replies to other settings or items, left in place and not used"
        )
    for what, key in (("node", "nodes"), ("judge", "judges")):
        for entry in report[key]:
            lines += endpoint_lines(entry, what)
    for name, entry in report["evaluators"].items():
        empty = f", {sum(entry['empty'].values())} empty: {_times(entry['empty'])}" if entry["empty"] else ""
        lines.append(f"evaluator {name}: {entry['scores']} scores{empty}")
    lines.append(
        f"score log: {report['rows']:,} rows, {report['outputs']} of {report['outputs_wanted']} outputs have an answer"
        if report["rows"]
        else "score log: none, because there is no usable answer"
    )
    return "\n".join(lines)
