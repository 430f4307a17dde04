"""Injected faults: what endpoints do on a bad day, at stated rates and repeatably."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tornado.web import RequestHandler

# what the official client asks again by itself, and what it hands on as if it were a reply
RETRIED = ("http_429", "http_429_wait", "http_500", "http_503", "disconnect", "half_reply")
HANDED_ON = ("garbage", "html", "wrong_shape", "drip", "empty", "truncated")
KINDS = RETRIED + HANDED_ON

DRIPS = 20  # ours: pieces of a slow reply


class Answer(NamedTuple):
    """One HTTP reply; several pieces are sent one after the other (server-sent events)."""

    status: int
    headers: dict[str, str]
    pieces: list[bytes]


@dataclass(frozen=True)
class Faults:
    """How often each fault hits; chance is seeded by the request's body and its attempt.

    So a run is repeatable whatever its concurrency, and a request asked again can succeed.

    Attributes:
        latency_s: before each reply, more or less by up to `jitter_s`, evenly.
        http_429: rate of "too many requests"; `http_429_wait` names `retry_after_s` with it.
        disconnect: rate of sockets closed before any byte of the reply.
        half_reply: rate of replies that end in the middle of the promised length.
        garbage: rate of bodies that are no JSON under status 200; `html` is a proxy's page.
        wrong_shape: rate of JSON that is no chat completion.
        drip: rate of good replies that come in small pieces over `drip_s`.
        empty: rate of completions without text.
        truncated: rate of completions cut in half, with `finish_reason` "length".
        persistent: share of bodies that meet the fate of their first attempt at every attempt.
    Raises:
        ValueError: a rate or their sum is not in 0 to 1, or a time is negative.
    """

    seed: int = 0
    http_429: float = 0.0
    http_429_wait: float = 0.0
    http_500: float = 0.0
    http_503: float = 0.0
    disconnect: float = 0.0
    half_reply: float = 0.0
    garbage: float = 0.0
    html: float = 0.0
    wrong_shape: float = 0.0
    drip: float = 0.0
    empty: float = 0.0
    truncated: float = 0.0
    persistent: float = 0.0
    latency_s: float = 0.0
    jitter_s: float = 0.0
    retry_after_s: int = 1  # ours: the shortest that HTTP can name
    drip_s: float = 2.0  # ours: long beside an honest reply, short enough for tests

    def __post_init__(self) -> None:
        rates = {name: getattr(self, name) for name in (*KINDS, "persistent")}
        rates["all kinds together"] = sum(getattr(self, kind) for kind in KINDS)
        for name, rate in rates.items():
            if not 0.0 <= rate <= 1.0 + 1e-9:  # twelve even rates need not sum to 1.0 exactly
                raise ValueError(f"fault rate of {name} is {rate}; use 0 to 1")
        for name in ("latency_s", "jitter_s", "retry_after_s", "drip_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; use 0 or more seconds")

    @classmethod
    def spread(cls, rate: float, kinds: tuple[str, ...] = KINDS, **others: float) -> Faults:
        """Share one rate evenly among kinds.

        >>> Faults.spread(0.5, ("http_500", "html"), seed=3).html
        0.25
        """
        return cls(**dict.fromkeys(kinds, rate / len(kinds)), **others)

    def kind(self, body_sha256: str, attempt: int) -> str:
        """Return the fault that hits this attempt (from 1) at a body; empty for none."""
        if self._chance(body_sha256, "persistent").random() < self.persistent:
            attempt = 1
        point = self._chance(body_sha256, attempt).random()
        for kind in KINDS:
            point -= getattr(self, kind)
            if point < 0:
                return kind
        return ""

    def delay_s(self, body_sha256: str, attempt: int) -> float:
        """Return how long this attempt waits for its reply, in seconds."""
        jitter_s = self.jitter_s * self._chance(body_sha256, "delay", attempt).uniform(-1, 1)
        return max(0.0, self.latency_s + jitter_s)

    def instead(self, kind: str, body_sha256: str, attempt: int) -> Answer | None:
        """Return what is said in place of the reply; None where the reply itself goes out."""
        if kind == "http_429_wait":
            return _error(429, "rate limit reached", {"Retry-After": str(self.retry_after_s)})
        answers = _INSTEAD.get(kind)
        return self._chance(body_sha256, "which", attempt).choice(answers) if answers else None

    def _chance(self, *parts: object) -> random.Random:
        return random.Random(repr((self.seed, *parts)))


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Answer:
    kind = "server_error" if status >= 500 else "requests"
    return as_json(status, {"error": {"message": message, "type": kind}}, headers)


def as_json(status: int, payload: object, headers: dict[str, str] | None = None) -> Answer:
    """Build a JSON answer."""
    head = {"Content-Type": "application/json"} | (headers or {})
    return Answer(status, head, [json.dumps(payload).encode()])


_JSON = {"Content-Type": "application/json"}
_PAGE = b"<!doctype html><title>502</title><h1>The gateway is having a rest</h1>"
_CHOICE = {"index": 0, "finish_reason": "stop"}
_INSTEAD = {
    "http_429": [_error(429, "too many requests")],
    "http_500": [_error(500, "internal error")],
    "http_503": [_error(503, "overloaded")],
    "html": [Answer(200, {"Content-Type": "text/html"}, [_PAGE])],
    "garbage": [
        Answer(200, _JSON, [body])
        for body in (b"", b'{"id": "chatcmpl-0", "choices": [{"ind', b"\x00\xff\xfe no text", _PAGE)
    ],
    "wrong_shape": [
        as_json(200, payload)
        for payload in (
            None,
            [],
            "ok",
            {},
            {"error": {"message": "rate limit reached", "code": 429}},  # some gateways do this
            {"choices": []},
            {"choices": "none"},
            {"choices": [{}]},
            {"choices": [_CHOICE | {"message": None}]},
            {"choices": [_CHOICE | {"message": {"role": "assistant", "content": 42}}]},
        )
    ],
}


async def send(handler: RequestHandler, answer: Answer, kind: str, drip_s: float) -> None:
    """Send an answer, and treat the connection as the kind of fault says."""
    from tornado.iostream import StreamClosedError

    pieces, body, pause_s = answer.pieces, b"".join(answer.pieces), 0.0
    try:
        if kind in ("disconnect", "half_reply"):
            stream = handler.detach()
            if kind == "half_reply":
                head = {**answer.headers, "Content-Length": str(len(body))}
                lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
                start = f"HTTP/1.1 {answer.status} Cut\r\n{lines}\r\n".encode()
                await stream.write(start + body[: len(body) // 2])
            stream.close()
            return
        if kind == "drip":
            size = len(body) // DRIPS + 1
            pieces = [body[at : at + size] for at in range(0, len(body), size)]
            pause_s = drip_s / DRIPS
        handler.set_status(answer.status)
        for name, value in answer.headers.items():
            handler.set_header(name, value)
        if len(answer.pieces) == 1:  # events are chunked instead, as real servers do
            handler.set_header("Content-Length", str(len(body)))
        for piece in pieces:
            handler.write(piece)
            await handler.flush()
            await asyncio.sleep(pause_s)
        await handler.finish()
    except (StreamClosedError, asyncio.CancelledError):
        pass  # the client went away, or the server stops: there is nobody to tell
