"""The local teacher's server: the part of OpenAI's chat API that this library uses, on loopback."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from vlaa_lib.records import Record

from .microworld.narrator import Rates
from .teacher import LocalTeacher, Refusal


def completion(body: bytes, teacher: LocalTeacher) -> tuple[int, dict[str, Any]]:
    """Answer the body of a chat completion request: status and JSON in OpenAI's shape."""
    try:
        request = json.loads(body)
        prompt, text = teacher.reply(request["model"], request["messages"])
    except Refusal as refusal:
        return refusal.status, _problem(str(refusal), refusal.code)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        said = f"expected JSON with 'model' and 'messages': {type(error).__name__}: {error}"
        return 400, _problem(said, "invalid_request")
    # this server's tokens are words and single marks; images count none
    counts = [len(re.findall(r"\w+|[^\w\s]", said)) for said in (prompt, text)]
    message = {"role": "assistant", "content": text}
    return 200, {
        "id": "chatcmpl-" + hashlib.sha256(body).hexdigest()[:24],
        "object": "chat.completion",
        "created": 0,  # no clock: the same request, the same reply
        "model": request["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": counts[0], "completion_tokens": counts[1],
                  "total_tokens": sum(counts)},
    }  # fmt: skip


def _problem(message: str, code: str) -> dict[str, Any]:
    kind = "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


class Handler(BaseHTTPRequestHandler):
    """Answer POST requests with `answer(body)`; a connection serves one after the other."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body leave together: apart, the second would wait for a receipt

    def answer(self, body: bytes) -> tuple[int, Any]:
        """Return status and JSON."""
        raise NotImplementedError

    def do_POST(self) -> None:
        self.send(*self.answer(self.rfile.read(int(self.headers.get("Content-Length", 0)))))

    def send(self, status: int, payload: Any, headers: Mapping[str, str] | None = None) -> None:
        """Send JSON, or bytes as they are."""
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self.send_response(status)
        sent = {"Content-Type": "application/json", "Content-Length": str(len(data))}
        for name, value in (sent | dict(headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Say nothing: no line for each request into a notebook."""


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # connections that may wait; the default's five are soon too few

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that went away is none
            super().handle_error(request, client_address)


@contextmanager
def serve(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serve on a free port of loopback from a thread; yield the base URL."""
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def serve_teacher(scenes: Mapping[str, dict], rates: Rates | None = None) -> Iterator[str]:
    """Serve the local teacher; yield its base URL. Keys are ignored.

    Args:
        scenes: scene by sha256 hex digest of the image file; `scenes_of` makes it from records.
        rates: how often it errs; None for the narrator's own.
    """
    teacher = LocalTeacher(scenes, rates)

    class Completions(Handler):
        def answer(self, body: bytes) -> tuple[int, dict[str, Any]]:
            return completion(body, teacher)

    with serve(Completions) as base_url:
        yield base_url


def scenes_of(records: Iterable[Record], images: str | Path) -> dict[str, dict]:
    """Map the sha256 hex digest of each micro-world record's image file to its scene."""
    return {
        hashlib.sha256((Path(images) / record.image).read_bytes()).hexdigest(): record.meta["scene"]
        for record in records
        if "scene" in record.meta
    }
