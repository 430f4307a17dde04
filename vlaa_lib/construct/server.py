"""The local teacher: an OpenAI-compatible server on loopback for micro-world images.

The same client talks to it as to a paid endpoint. It captions from the scene, with mistakes at
stated rates, and does everything else from the text of the prompt alone.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
import queue
import random
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlaa_lib import prompts
from vlaa_lib.construct import rules
from vlaa_lib.construct.templates import read
from vlaa_lib.microworld import narrator
from vlaa_lib.microworld.narrator import Rates
from vlaa_lib.records import Record, RecordError, load

if TYPE_CHECKING:
    from tornado.web import Application

_TEMPLATES = {
    "teacher-caption": prompts.CAPTION_PROMPT,
    "teacher-distil": prompts.DISTIL_PROMPT,
    "teacher-rewrite": prompts.REWRITE_PROMPT,
    "teacher-verify": prompts.VERIFY_PROMPT,
}


class TeacherError(Exception):
    """A request the teacher does not answer: HTTP status and an OpenAI error code."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class LocalTeacher:
    """Answer the four kinds of request; the model name says which kind it is.

    Deterministic: chance is seeded by the model name, the prompt and the image, so sampling
    settings and the order of requests change nothing.

    Args:
        scenes: scene of each known image, by the sha256 hex digest of its file.
        rates: how often captions err and traces hesitate; None for the narrator's own.
    """

    def __init__(self, scenes: Mapping[str, dict], rates: Rates | None = None) -> None:
        self._scenes, self._rates = scenes, rates or Rates()

    def reply(self, model: str, messages: object) -> tuple[str, str]:
        """Return (prompt text, reply text).

        Raises:
            TeacherError: the request cannot be read or answered.
        """
        template = _TEMPLATES.get(model)
        if template is None:
            known = ", ".join(_TEMPLATES)
            raise TeacherError(404, "model_not_found", f"no model {model!r} here; use {known}")
        text, image = _read_messages(messages)
        slots = read(template, text)
        if slots is None:
            raise TeacherError(
                422, "unknown_prompt", f"{model} only understands this library's own prompt for it"
            )
        seed = hashlib.sha256(f"{model}\0{text}\0{image}".encode()).hexdigest()
        rng = random.Random(int(seed, 16))
        if model == "teacher-caption":
            return text, self._caption(image, rng)
        if model == "teacher-distil":
            return text, self._distil(slots["caption"], slots["question"], rng)
        if model == "teacher-rewrite":
            return text, rules.rewrite(slots["input"])
        return text, "Yes" if rules.agrees(slots["gold"], slots["pred"]) else "No"

    def _caption(self, image: str, rng: random.Random) -> str:
        if not image:
            raise TeacherError(400, "missing_image", "a caption needs an image as a data URL")
        if image not in self._scenes:
            raise TeacherError(
                422,
                "unknown_image",
                "the local teacher only knows micro-world images, and this is none of those it "
                "was started with; give records with captions, or the address of a real endpoint",
            )
        return narrator.caption(self._scenes[image], self._rates, rng)

    def _distil(self, caption: str, question: str, rng: random.Random) -> str:
        try:
            return prompts.join_think_answer(*narrator.reason(caption, question, self._rates, rng))
        except narrator.CannotAnswer as error:
            raise TeacherError(422, "cannot_answer", str(error)) from None


def _read_messages(messages: object) -> tuple[str, str]:
    """Return the text of the last message and the sha256 hex digest of its image, if any."""
    try:
        content = messages[-1]["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        text = "".join(part["text"] for part in parts if part["type"] == "text")
        urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        images = [base64.b64decode(_data_of(url), validate=True) for url in urls]
    except (TypeError, LookupError, AttributeError, binascii.Error) as error:
        raise TeacherError(
            400, "invalid_messages", f"cannot read 'messages': {type(error).__name__}: {error}"
        ) from None
    return text, hashlib.sha256(images[-1]).hexdigest() if images else ""


def _data_of(url: str) -> str:
    head, comma, data = url.partition(",")
    if not comma or not re.fullmatch(r"data:[\w/+.-]*;base64", head):
        raise TeacherError(400, "invalid_image_url", "images must be base64 data URLs")
    return data


def _num_tokens(text: str) -> int:
    """Count words and single marks: this server's unit of usage; images count nothing."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def _completion(teacher: LocalTeacher, body: bytes) -> dict[str, Any]:
    """Answer the body of a chat completion request in OpenAI's shape."""
    try:
        request = json.loads(body)
        model, messages = request["model"], request["messages"]
    except (ValueError, LookupError, TypeError) as error:
        raise TeacherError(
            400, "invalid_request", f"expected JSON with 'model' and 'messages': {error}"
        ) from None
    if request.get("stream"):
        raise TeacherError(400, "no_streaming", "this server does not stream; drop 'stream'")
    prompt, text = teacher.reply(str(model), messages)
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": _num_tokens(prompt), "completion_tokens": _num_tokens(text)}
    return {
        "id": "chatcmpl-" + hashlib.sha256(body).hexdigest()[:24],
        "object": "chat.completion",
        "created": 0,  # no clock: the same request, the same reply
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": usage | {"total_tokens": sum(usage.values())},
    }


def _application(teacher: LocalTeacher) -> Application:
    from tornado.web import Application, RequestHandler

    class Handler(RequestHandler):
        def write_error(self, status_code: int, **kwargs: Any) -> None:
            error = kwargs.get("exc_info", (None, None))[1]
            kind = "invalid_request_error" if status_code < 500 else "server_error"
            code = getattr(error, "code", None)
            message = str(error) if isinstance(error, TeacherError) else self._reason
            self.finish({"error": {"message": message, "type": kind, "param": None, "code": code}})

    class Completions(Handler):
        def post(self) -> None:
            try:
                self.finish(_completion(teacher, self.request.body))
            except TeacherError as error:
                self.send_error(error.status, exc_info=(type(error), error, None))

    class Models(Handler):
        def get(self) -> None:
            rows = [
                {"id": name, "object": "model", "created": 0, "owned_by": "vlaa_lib"}
                for name in _TEMPLATES
            ]
            self.finish({"object": "list", "data": rows})

    class NotFound(Handler):
        def prepare(self) -> None:
            self.send_error(404, reason="no such address; this server's are below /v1")

    return Application(
        [("/v1/chat/completions", Completions), ("/v1/models", Models)],
        default_handler_class=NotFound,
        log_function=lambda handler: None,  # no line for each refused request into a notebook
    )


@contextmanager
def serve_teacher(
    scenes: Mapping[str, dict], rates: Rates | None = None, port: int = 0
) -> Iterator[str]:
    """Serve the local teacher on loopback from a background thread; yield its base URL.

    Keys are ignored; nothing is remembered between requests.

    Args:
        scenes: scene by sha256 hex digest of the image file; `scenes_of` makes it from records.
        rates: how often it errs; None for the narrator's own.
        port: 0 for any free one.
    Raises:
        OSError: the port is taken.
    """
    from tornado.netutil import bind_sockets

    teacher = LocalTeacher(scenes, rates)
    sockets = bind_sockets(port, "127.0.0.1")
    started: queue.Queue[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = queue.Queue()

    async def main() -> None:
        from tornado.httpserver import HTTPServer

        stop = asyncio.Event()
        server = HTTPServer(_application(teacher))
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


def serve_forever(records_path: str | Path, images_root: str | Path, port: int) -> None:
    """Serve the local teacher for a file of records until interrupted: `serve-teacher`.

    Raises:
        RecordError: the file has no micro-world record.
    """
    scenes = scenes_of(load(records_path, images_root).records, images_root)
    if not scenes:
        raise RecordError(f"{records_path}: no record with 'meta.scene'; write a micro-world split")
    try:
        with serve_teacher(scenes, port=port) as base_url:
            print(f"teacher for {len(scenes)} images at {base_url}, stop with Ctrl-C", flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        print("stopped")
