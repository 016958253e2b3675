"""Collect a score log from a live network: ask the nodes, score what they answer, write the log.

``poq collect STUDY.toml`` calls `main`. Every reply is on disk, in a journal of JSON lines, the moment it arrives; a
collection that was stopped or killed goes on where it was, and nothing that was answered is asked twice.
"""

import argparse
import asyncio
import base64
import contextlib
import dataclasses
import datetime
import email.utils
import fcntl
import hashlib
import html
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import random
import re
import sys
import time
import traceback
import urllib.parse
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from poq.escape import reveal
from poq.scorelog import check_log
from poq.workload.build import write_table
from poq.workload.evaluators import Context, Evaluator, MissingModelError, Output, blind, load_biencoder
from poq.workload.judge_parsing import draw_codes, judge_prompt, read_score
from poq.workload.study import Endpoint, Item, Judge, Study, StudyError, api_key, digest_items, read_study
from poq.workload.truth import answer_match, token_f1

JOURNAL, LOG, OUTPUTS, REPORT = "journal.jsonl", "score_log.csv.gz", "outputs.jsonl", "report.json"
FORMAT = "poq collect 1"
MAX_BODY = 2_000_000  # bytes of a reply that are read
MAX_TEXT = 50_000  # characters of an answer that is still an answer
RAW_KEPT = 20_000  # characters of a malformed reply that are kept
MAX_WAIT = 60.0  # seconds, whatever a server asks for in Retry-After
MASK = "[key removed]"
INCOMPLETE = 3  # exit code: the log is written, but something was not answered
KEPT = ("ok", "malformed", "unparsable")  # what is not asked again


# The journal ---------------------------------------------------------------------------------------------------------


class JournalError(RuntimeError):
    """A results folder that cannot be used; the message names it."""


@dataclass
class Journal:
    """The open journal: `records` holds the last record of each key, `torn` counts unreadable lines."""

    handle: object
    records: dict[str, dict]
    torn: int

    def add(self, record: Mapping) -> None:
        """Append one record; it is on disk when this returns."""
        self.handle.write(json.dumps(record).encode("ascii") + b"\n")
        self.handle.flush()
        os.fsync(self.handle.fileno())
        self.records[record["key"]] = dict(record)


@contextlib.contextmanager
def open_journal(folder: Path, *, study: str):
    """Open or begin the journal in `folder`, for this process alone.

    A last line that a kill has torn is left where it is, ended, counted, and its question asked again.

    Raises
    ------
    JournalError
        If the folder is in use by another collection, or holds something else than a collection.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / JOURNAL
    if not path.exists():
        if any(not entry.name.startswith(".") for entry in folder.iterdir()):
            raise JournalError(f"{folder}: is not empty and holds no {JOURNAL}; name another folder in output.folder")
        begun = folder / f".{JOURNAL}.{os.getpid()}"
        begun.write_text(json.dumps({"format": FORMAT, "study": study}) + "\n", encoding="ascii")
        os.replace(begun, path)
    with path.open("r+b") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise JournalError(f"{folder}: another collection is running in this folder") from None
        content = handle.read()
        header, *lines = content.split(b"\n")
        if (_as_record(header) or {}).get("format") != FORMAT:
            raise JournalError(f"{path}: is not a journal of this version of poq collect")
        if not content.endswith(b"\n"):
            handle.write(b"\n")
        records, torn = {}, 0
        for line in lines:
            record = _as_record(line)
            if record is not None and isinstance(record.get("key"), str) and record.get("status") in (*KEPT, "failed"):
                records[record["key"]] = record
            elif line.strip():
                torn += 1
        yield Journal(handle, records, torn)


def _as_record(line: bytes) -> dict | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def hash_key(**parts: object) -> str:
    """The key of a request: a fingerprint of all that decides what is asked, and of whom."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def make_redact(keys: Iterable[str]) -> Callable[[str], str]:
    """A function that removes the keys from a text, also where they come back encoded."""
    forms = set()
    for key in keys:
        bare = base64.b64encode(key.encode()).decode().rstrip("=")
        forms |= {key, urllib.parse.quote(key, safe=""), json.dumps(key)[1:-1], html.escape(key), bare}
    if not forms:
        return lambda text: text
    pattern = re.compile("|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True)), re.IGNORECASE)
    return lambda text: pattern.sub(MASK, text)


# One request ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """One question to one endpoint.

    `label` is what the journal says about it besides the reply; `read(text, cut)` gives further fields of a usable
    reply, such as a judge's score.
    """

    key: str
    endpoint: Endpoint
    prompt: str
    label: Mapping[str, object]
    read: Callable[[str, bool], Mapping] | None = None


@dataclass(frozen=True)
class Reply:
    """What came back: `status` is ok, malformed, retry, refused (this question) or barred (any question)."""

    status: str
    reason: str = ""
    text: str = ""
    raw: str = ""
    finish: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    retry_after: float | None = None
    latency: float = math.nan


def read_reply(body: bytes) -> Reply:
    """The answer in the body of a chat completion, or why there is none."""
    raw = body.decode("utf-8", "replace")
    bad = dataclasses.replace
    reply = Reply("malformed", raw=raw)
    if len(body) >= MAX_BODY:
        return bad(reply, reason="too large")
    try:
        found = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        return bad(reply, reason="not JSON" if body.strip() else "empty body")
    try:
        choice = found["choices"][0]
        text = choice["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return bad(reply, reason="wrong schema")
    if text is not None and not isinstance(text, str):
        return bad(reply, reason="wrong schema")
    usage = found.get("usage") if isinstance(found.get("usage"), dict) else {}
    finish = choice.get("finish_reason")
    reply = Reply(
        "ok",
        raw=raw,
        text=re.sub("[\ud800-\udfff]", "\ufffd", text or ""),
        finish=finish if finish in ("stop", "length", "content_filter", "tool_calls") else "other",
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
    )
    if not reply.text.strip():
        return bad(reply, status="malformed", reason="empty answer")
    if len(reply.text) > MAX_TEXT:
        return bad(reply, status="malformed", reason="answer too long", text="")
    return reply


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9 else None


def judge_status(code: int) -> str:
    """What an HTTP status other than 2xx means for the collector: retry, refused or barred."""
    if code in (408, 409, 425, 429) or code >= 500:
        return "retry"
    return "refused" if code in (400, 413, 422) else "barred"


def read_retry_after(value: str | None, now: float) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or a date; None if it says nothing usable."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - now
        except (ValueError, TypeError, OverflowError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def wait_before(number: int, backoff: float, retry_after: float | None, draw: float) -> float:
    """Seconds to wait after try `number` (from 0) failed: doubling with jitter, at least what the server asked for.

    `draw` in [0, 1) makes the jitter, so that workers which failed together do not come back together.
    """
    wait = backoff * 2.0 ** min(number, 20) * (0.5 + draw / 2)
    return min(max(wait, (retry_after or 0.0) * (1 + draw / 10)), MAX_WAIT)


def make_client(endpoint: Endpoint):
    """An `openai` client that talks to this endpoint only, with our key, our retries and bounded replies."""
    import httpx2
    import openai

    key = api_key(endpoint)

    class Bounded(httpx2.AsyncByteStream):
        """The first `MAX_BODY` bytes of a stream: a server cannot fill our memory."""

        def __init__(self, stream):
            self.stream = stream

        async def __aiter__(self):
            left = MAX_BODY
            async for chunk in self.stream:
                yield chunk[:left]
                left -= len(chunk)
                if left <= 0:
                    return

        async def aclose(self):
            await self.stream.aclose()

    async def bare(request):
        # The client adds headers from OPENAI_* variables and about this machine; strangers get neither.
        # One of them the client reads back, to know that we asked for the bytes.
        ours = ("host", "content-type", "content-length", "accept", "connection", "x-stainless-raw-response")
        headers = {name: value for name, value in request.headers.items() if name.lower() in ours}
        headers["accept-encoding"] = "identity"
        if key:
            headers["authorization"] = f"Bearer {key}"
        request.headers = httpx2.Headers(headers)
        request.extensions["begun"] = time.perf_counter()  # the client's own preparations are not the node's latency

    async def bound(response):
        # Nobody asked for compression; a small body that unpacks to a huge one stays packed, and is malformed.
        if "content-encoding" in response.headers:
            del response.headers["content-encoding"]
        response.headers["content-type"] = "application/json; charset=utf-8"  # a stranger names no codec of ours
        response.stream = Bounded(response.stream)

    http = httpx2.AsyncClient(
        timeout=endpoint.timeout,
        follow_redirects=False,  # a prompt or a key goes where the study says, nowhere else
        event_hooks={"request": [bare], "response": [bound]},
        limits=httpx2.Limits(max_connections=endpoint.concurrency, max_keepalive_connections=endpoint.concurrency),
    )
    return openai.AsyncOpenAI(
        api_key=key or "none", base_url=endpoint.base_url, max_retries=0, timeout=endpoint.timeout, http_client=http
    )


async def send(client, endpoint: Endpoint, prompt: str) -> Reply:
    """Ask once; the latency is that of this try alone, from connecting and sending to the last byte."""
    import httpx2
    import openai

    messages = [{"role": "system", "content": endpoint.system}] if endpoint.system else []
    body = {"model": endpoint.model, "messages": [*messages, {"role": "user", "content": prompt}]}
    if endpoint.max_tokens:
        body["max_tokens"] = endpoint.max_tokens
    if endpoint.temperature is not None:
        body["temperature"] = endpoint.temperature
    try:
        # The client's own limit is per read: a server that drips a byte a second would never meet it.
        async with asyncio.timeout(endpoint.timeout):
            create = client.chat.completions.with_streaming_response.create
            async with create(**body, extra_body=dict(endpoint.extra) or None) as response:
                content = b"".join([chunk async for chunk in response.iter_bytes()])
                latency = time.perf_counter() - response.http_request.extensions["begun"]
        return dataclasses.replace(read_reply(content), latency=latency)
    except openai.APIStatusError as error:
        after = read_retry_after(error.response.headers.get("retry-after"), time.time())
        status = judge_status(error.status_code)
        return Reply(status, f"http {error.status_code}", raw=error.response.text, retry_after=after)
    except (TimeoutError, openai.APITimeoutError, httpx2.TimeoutException):
        return Reply("retry", "timeout")
    except (openai.APIConnectionError, httpx2.HTTPError, httpx2.StreamError, OSError) as error:
        return Reply("retry", "connection", raw=str(error.__cause__ or error))


# All requests --------------------------------------------------------------------------------------------------------


@dataclass
class Line:
    """The requests that wait for one endpoint, and how it is doing."""

    queue: deque
    client: object
    failures: int = 0
    resume_at: float = 0.0
    gone: asyncio.Event = field(default_factory=asyncio.Event)


async def ask(request: Request, line: Line, redact: Callable[[str], str]) -> tuple[dict, str]:
    """Ask until there is a reply or the tries are used up; the journal's record and the last status."""
    endpoint, trouble = request.endpoint, Counter()
    loop = asyncio.get_running_loop()
    for number in range(endpoint.retries + 1):
        await _sleep(line, line.resume_at - loop.time())
        reply = await send(line.client, endpoint, request.prompt)
        if reply.status != "retry":
            break
        trouble[reply.reason] += 1
        if number == endpoint.retries or line.gone.is_set():
            break
        wait = wait_before(number, endpoint.backoff, reply.retry_after, random.random())
        if reply.retry_after:
            line.resume_at = max(line.resume_at, loop.time() + wait)  # the others need not ask to hear the same
        await _sleep(line, wait)
        if line.gone.is_set():
            break
    text, raw = redact(reply.text), redact(reply.raw)
    record = {
        "key": request.key,
        **request.label,
        "status": reply.status if reply.status in KEPT else "failed",
        "reason": reply.reason,
        "text": text,
        "finish": reply.finish,
        "latency": None if math.isnan(reply.latency) else round(reply.latency, 6),
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "tries": number + 1,
        "trouble": dict(trouble),
        "key_echoed": raw != reply.raw,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    if reply.status == "ok" and request.read is not None:
        record |= request.read(text, reply.finish == "length")
    if record["status"] != "ok":
        record["raw"] = raw[:RAW_KEPT]
    return record, reply.status


async def _sleep(line: Line, seconds: float) -> None:
    """Wait, but not for an endpoint that has been given up meanwhile."""
    if seconds > 0:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(line.gone.wait(), seconds)


async def ask_all(
    requests: Sequence[Request],
    journal: Journal,
    *,
    redact: Callable[[str], str],
    what: str,
    done: int = 0,
) -> dict[str, tuple[str, int]]:
    """Ask everything, each endpoint at its own pace; endpoints that were given up, with (reason, number not asked)."""
    by_name: dict[str, list[Request]] = {}
    for request in requests:
        by_name.setdefault(request.endpoint.name, []).append(request)
    given_up: dict[str, tuple[str, int]] = {}
    with tqdm(total=len(requests) + done, initial=done, desc=what, unit="reply", file=sys.stderr) as bar:

        async def work(name: str, line: Line) -> None:
            while line.queue and not line.gone.is_set():
                request = line.queue.popleft()
                record, status = await ask(request, line, redact)
                journal.add(record)
                bar.update()
                # An endpoint that refuses one question is alive; one that fails again and again is not.
                line.failures = line.failures + 1 if status in ("retry", "barred") else 0
                if line.failures >= request.endpoint.give_up_after and not line.gone.is_set():
                    line.gone.set()
                    given_up[name] = (record["reason"], len(line.queue))
                    bar.write(
                        f"{name}: given up after {line.failures} failures in a row, the last: {record['reason']}; "
                        f"{len(line.queue)} questions not asked",
                        file=sys.stderr,
                    )

        async with contextlib.AsyncExitStack() as stack:
            lines = {
                name: Line(deque(mine), await stack.enter_async_context(make_client(mine[0].endpoint)))
                for name, mine in by_name.items()
            }
            async with asyncio.TaskGroup() as group:
                for name, line in lines.items():
                    for _ in range(min(by_name[name][0].endpoint.concurrency, len(line.queue))):
                        group.create_task(work(name, line))
    return given_up


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
    columns = [
        "task",
        "item",
        "model",
        "evaluator",
        "score",
        "truth",
        "cost",
        "model_cost",
        "truth_alt",
        "reference_based",
    ]
    if log["truth_alt"].isna().all():
        columns.remove("truth_alt")
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


# The report ----------------------------------------------------------------------------------------------------------


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
