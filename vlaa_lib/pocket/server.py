"""The local teacher's server: OpenAI's chat API on loopback for micro-world images.

The same client talks to it as to a paid endpoint, and on demand it fails like one.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import queue
import re
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vlaa_lib import prompts
from vlaa_lib.records import Record, RecordError, load

from .faults import Answer, Faults, as_json, send
from .microworld.narrator import Rates
from .teacher import TEMPLATES, LocalTeacher, TeacherError

if TYPE_CHECKING:
    from tornado.web import Application, RequestHandler


def _token_ends(text: str) -> list[int]:
    """Return where each word and single mark ends: this server's tokens; images count none."""
    return [match.end() for match in re.finditer(r"\w+|[^\w\s]", text)]


def _read_request(body: bytes) -> dict[str, Any]:
    try:
        request = json.loads(body)
        request["model"], request["messages"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise TeacherError(
            400, "invalid_request", f"expected JSON with 'model' and 'messages': {error}"
        ) from None
    for name, plain in (("n", 1), ("logprobs", False), ("tools", [])):
        if request.get(name, plain) not in (None, plain):
            raise TeacherError(400, "unsupported", f"this server knows no {name!r}; leave it out")
    limit = _limit(request)
    if limit is not None and (type(limit) is not int or limit < 1):
        raise TeacherError(400, "invalid_request", f"token limit {limit!r}; use 1 or more")
    return request


def _limit(request: dict[str, Any]) -> int | None:
    return request.get("max_completion_tokens") or request.get("max_tokens")


def _completion(
    teacher: LocalTeacher, request: dict[str, Any], fault: str, reasoning_field: bool
) -> dict[str, Any]:
    """Answer a chat completion request in OpenAI's shape."""
    model = str(request["model"])
    prompt, text = teacher.reply(model, request["messages"])
    text, ends = ("", []) if fault == "empty" else (text, _token_ends(text))
    limit = len(ends) // 2 if fault == "truncated" else _limit(request)
    finish = "stop" if limit is None or len(ends) <= limit else "length"
    if finish == "length":
        text, ends = text[: ends[limit - 1]] if limit else "", ends[:limit]
    message = {"role": "assistant", "content": text}
    if reasoning_field and model == "teacher-distil":
        think, _, rest = text.partition(prompts.THINK_CLOSE)
        thought = think.removeprefix(prompts.THINK_OPEN)
        message = {"role": "assistant", "reasoning_content": thought, "content": rest}
    usage = {"prompt_tokens": len(_token_ends(prompt)), "completion_tokens": len(ends)}
    return {
        "id": "chatcmpl-" + hashlib.sha256(json.dumps(request).encode()).hexdigest()[:24],
        "object": "chat.completion",
        "created": 0,  # no clock: the same request, the same reply
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": usage | {"total_tokens": sum(usage.values())},
    }


def _events(completion: dict[str, Any], with_usage: bool) -> Answer:
    """Turn a completion into server-sent events, a word each, in OpenAI's chunk shape."""
    head = {name: completion[name] for name in ("id", "created", "model")}
    head["object"] = "chat.completion.chunk"
    (choice,) = completion["choices"]
    deltas: list[tuple[dict, str | None]] = [({"role": "assistant", "content": ""}, None)]
    for name in ("reasoning_content", "content"):
        words = re.findall(r"\s*\S+|\s+", choice["message"].get(name, ""))
        deltas += [({name: word}, None) for word in words]
    deltas.append(({}, choice["finish_reason"]))
    chunks = [
        head | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
        for delta, finish in deltas
    ]
    if with_usage:
        chunks.append(head | {"choices": [], "usage": completion["usage"]})
    lines = [*map(json.dumps, chunks), "[DONE]"]
    pieces = [f"data: {line}\n\n".encode() for line in lines]
    return Answer(200, {"Content-Type": "text/event-stream"}, pieces)


class Served(NamedTuple):
    """One request in the journal: when it came (`time.time()`), and what became of it.

    `outcome` is the kind of fault that hit it, else the status, as "HTTP 200".
    """

    time: float
    model: str
    body_sha256: str
    outcome: str


class _Desk:
    """Take request bodies one by one; decide on faults and keep the journal."""

    def __init__(
        self,
        teacher: LocalTeacher,
        faults: Faults | None,
        journal: list[Served] | None,
        reasoning_field: bool,
    ) -> None:
        self._teacher, self._faults, self._journal = teacher, faults, journal
        self._reasoning_field = reasoning_field
        self._attempts: Counter[str] = Counter()

    async def serve(self, handler: RequestHandler) -> None:
        """Answer one request, or spoil the answer."""
        body, came = handler.request.body, time.time()
        sha256, kind, instead, faults = hashlib.sha256(body).hexdigest(), "", None, self._faults
        if faults:
            self._attempts[sha256] += 1
            attempt = self._attempts[sha256]
            kind = faults.kind(sha256, attempt)
            instead = faults.instead(kind, sha256, attempt)
            await asyncio.sleep(faults.delay_s(sha256, attempt))
        model, answer = self._answer(body, kind)
        if self._journal is not None:  # before the reply: who has it finds it in the journal
            spoilt = kind and (instead or answer.status == 200)
            outcome = kind if spoilt else f"HTTP {answer.status}"
            self._journal.append(Served(came, model, sha256, outcome))
        await send(handler, instead or answer, kind, faults.drip_s if faults else 0.0)

    def _answer(self, body: bytes, fault: str) -> tuple[str, Answer]:
        model = ""
        try:
            request = _read_request(body)
            model = str(request["model"])
            completion = _completion(self._teacher, request, fault, self._reasoning_field)
        except TeacherError as error:
            return model, as_json(error.status, _problem(error.status, str(error), error.code))
        if not request.get("stream"):
            return model, as_json(200, completion)
        options = request.get("stream_options")
        with_usage = isinstance(options, dict) and bool(options.get("include_usage"))
        return model, _events(completion, with_usage)


def _problem(status: int, message: str, code: str | None = None) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _application(desk: _Desk) -> Application:
    from tornado.web import Application, RequestHandler

    class Handler(RequestHandler):
        def write_error(self, status_code: int, **kwargs: Any) -> None:
            self.finish(_problem(status_code, self._reason))

    class Completions(Handler):
        async def post(self) -> None:
            await desk.serve(self)

    class Models(Handler):
        def get(self) -> None:
            rows = [
                {"id": name, "object": "model", "created": 0, "owned_by": "vlaa_lib"}
                for name in TEMPLATES
            ]
            self.finish({"object": "list", "data": rows})

    class Health(Handler):
        def get(self) -> None:
            self.finish({"status": "ok"})

    class NotFound(Handler):
        def prepare(self) -> None:
            self.send_error(404, reason="no such address; this server's are below /v1")

    return Application(
        [("/v1/chat/completions", Completions), ("/v1/models", Models), ("/health", Health)],
        default_handler_class=NotFound,
        log_function=lambda handler: None,  # no line for each refused request into a notebook
    )


@contextmanager
def serve_teacher(
    scenes: Mapping[str, dict],
    rates: Rates | None = None,
    port: int = 0,
    faults: Faults | None = None,
    *,
    journal: list[Served] | None = None,
    reasoning_field: bool = False,
) -> Iterator[str]:
    """Serve the local teacher on loopback from a background thread; yield its base URL.

    Speaks the part of OpenAI's chat API that this library uses, streaming included, as vLLM and
    `transformers serve` do. Keys are ignored; with faults, attempts at each body are counted,
    otherwise nothing is remembered between requests.

    Args:
        scenes: scene by sha256 hex digest of the image file; `scenes_of` makes it from records.
        rates: how often it errs; None for the narrator's own.
        port: 0 for any free one.
        faults: what goes wrong on the way, and how often; None for nothing.
        journal: gets one `Served` a chat request, in the order of the replies; a list's `append`
            is atomic, so it may be read meanwhile.
        reasoning_field: the reasoner's thinking comes beside the text, as `reasoning_content`
            (DeepSeek's API), instead of in tags.
    Raises:
        OSError: the port is taken.
    """
    from tornado.netutil import bind_sockets

    desk = _Desk(LocalTeacher(scenes, rates), faults, journal, reasoning_field)
    sockets = bind_sockets(port, "127.0.0.1")
    started: queue.Queue[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = queue.Queue()

    async def main() -> None:
        from tornado.httpserver import HTTPServer

        stop = asyncio.Event()
        server = HTTPServer(_application(desk))
        server.add_sockets(sockets)
        started.put((asyncio.get_running_loop(), stop))
        await stop.wait()
        server.stop()
        await server.close_all_connections()

    thread = threading.Thread(target=lambda: asyncio.run(main()), name="local-teacher", daemon=True)
    thread.start()
    loop, stop = started.get()
    try:
        yield f"http://127.0.0.1:{sockets[0].getsockname()[1]}/v1"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


def scenes_of(records: Iterable[Record], images: str | Path) -> dict[str, dict]:
    """Map the sha256 hex digest of each micro-world record's image file to its scene."""
    return {
        hashlib.sha256((Path(images) / record.image).read_bytes()).hexdigest(): record.meta["scene"]
        for record in records
        if "scene" in record.meta
    }


def serve_forever(
    records_path: str | Path,
    images_root: str | Path,
    port: int,
    fault_rate: float = 0.0,
    reasoning_field: bool = False,
) -> None:
    """Serve the local teacher for a file of records until interrupted: `serve-teacher`.

    Args:
        fault_rate: of all kinds of fault together.
    Raises:
        ValueError: the rate is not in 0 to 1.
        RecordError: the file has no micro-world record.
    """
    faults = Faults.spread(fault_rate) if fault_rate else None
    scenes = scenes_of(load(records_path, images_root).records, images_root)
    if not scenes:
        raise RecordError(f"{records_path}: no record with 'meta.scene'; write a micro-world split")
    try:
        with serve_teacher(
            scenes, port=port, faults=faults, reasoning_field=reasoning_field
        ) as base_url:
            print(f"teacher for {len(scenes)} images at {base_url}, stop with Ctrl-C", flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        print("stopped")
