"""Ask endpoints that speak the OpenAI chat protocol: a request with patience, then all, each endpoint at its pace."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import email.utils
import json
import math
import random
import re
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tqdm import tqdm

from poq.workload.journal import KEPT, Journal
from poq.workload.study import Endpoint, api_key

MAX_BODY = 2_000_000  # bytes of a reply that are read
MAX_TEXT = 50_000  # characters of an answer that is still an answer
RAW_KEPT = 20_000  # characters of a malformed reply that are kept
MAX_WAIT = 60.0  # seconds, whatever a server asks for in Retry-After


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


# All requests -------------------------------------------------------------------------------------------------------


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
        reply = await send(line.client, endpoint, request.prompt)
        if reply.status != "retry":
            break
        trouble[reply.reason] += 1
        wait = wait_before(number, endpoint.backoff, reply.retry_after, random.random())
        if reply.retry_after:
            line.resume_at = max(line.resume_at, loop.time() + wait)  # the others need not ask to hear the same
        if number == endpoint.retries or line.gone.is_set():
            break
        await _sleep(line, wait)
        await _sleep(line, line.resume_at - loop.time())
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
                await _sleep(line, line.resume_at - asyncio.get_running_loop().time())
                if line.gone.is_set() or not line.queue:
                    break
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
