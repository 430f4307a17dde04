"""Endpoints for tests: one that says what a test tells it to, and the local teacher on bad days."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from contextlib import contextmanager
from typing import NamedTuple

from vlaa_lib import prompts
from vlaa_lib.pocket import server
from vlaa_lib.pocket.teacher import LocalTeacher, read_back


def completion(content):
    """Build a completion whose message is text, or a dict of message and choice fields."""
    fields = {"content": content} if isinstance(content, str) else dict(content)
    finish = fields.pop("finish_reason", "stop")
    message = {"role": "assistant", "content": None} | fields
    return {
        "id": "x", "object": "chat.completion", "created": 0, "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
    }  # fmt: skip


def trace(think="two and one", answer="3"):
    return prompts.join_think_answer(think, answer)


def by_step(**replies):
    """Answer each step with one reply; rewriting gives its input back unless told otherwise."""
    replies = {"caption": "A thing.", "distil": trace(), "verify": "Yes"} | replies

    def answer(body):
        content = replies.get(body["model"].removeprefix("teacher-"))
        if content is None:
            prompt = body["messages"][0]["content"]
            content = read_back(prompts.REWRITE_PROMPT, prompt)["input"]
        return content if isinstance(content, tuple) else (200, content, {})

    return answer


GOOD = by_step()


class Pieces(NamedTuple):
    """A body that comes piece by piece, then the connection ends; without any, no reply at all."""

    pieces: list[bytes]
    length: int
    pause_s: float = 0.002


@contextmanager
def endpoint(answer):
    """Serve `answer(body) -> (status, content, error, bytes or Pieces, headers)`.

    Yield its URL and the bodies it was sent.
    """
    bodies = []

    class Told(server.Handler):
        def do_POST(self):
            data = self.rfile.read(length := int(self.headers["Content-Length"]))
            if len(data) < length:
                return  # the client died in the middle
            bodies.append(body := json.loads(data))
            status, content, headers = answer(body)
            if isinstance(content, Pieces):
                self.send_pieces(content)
                return
            if not isinstance(content, bytes):
                error = content if isinstance(content, dict) else {"error": {"message": content}}
                content = completion(content) if status == 200 else error
            self.send(status, content, headers)

        def send_pieces(self, content):
            self.close_connection = True
            for piece in content.pieces:
                if piece is content.pieces[0]:
                    self.send_response(200)
                    self.send_header("Content-Length", str(content.length))
                    self.end_headers()
                self.wfile.write(piece)
                self.wfile.flush()
                time.sleep(content.pause_s)

    with server.serve(Told) as base_url:
        yield base_url, bodies


# what the official client asks again by itself, and what it hands on as if it were a reply
RETRIED = ("http_429", "http_500", "http_503", "disconnect", "half_reply")
HANDED_ON = ("garbage", "html", "wrong_shape", "drip", "empty", "truncated", "unfinished")
KINDS = RETRIED + HANDED_ON

_CHOICE = {"index": 0, "finish_reason": "stop"}
GARBAGE = (b"", b'{"id": "x", "choices": [{"ind', b"\x00\xff\xfe no text", b"[" * 100_000)
WRONG_SHAPES = tuple(json.dumps(shape).encode() for shape in (
    None, [], "ok", {}, {"error": {"message": "rate limit reached", "code": 429}},
    {"choices": []}, {"choices": "none"}, {"choices": [{}]}, {"choices": {"a": 1}},
    {"choices": [{"message": "text"}]}, {"choices": [_CHOICE | {"message": None}]},
    {"choices": [_CHOICE | {"message": {"role": "assistant", "content": 42}}]},
))  # fmt: skip
_PAGE = b"<!doctype html><title>502</title><h1>The gateway is having a rest</h1>"
_ENDS = {"empty": "stop", "truncated": "length", "unfinished": "error"}
_INSTEAD = {"garbage": GARBAGE, "wrong_shape": WRONG_SHAPES, "html": (_PAGE,)}


@contextmanager
def faulty_teacher(scenes, rate, kinds=KINDS, persistent=False):
    """Serve the local teacher with faults; yield its URL and the outcomes so far, a Counter.

    Chance is seeded by body and attempt, so it does not depend on the order of the requests; with
    `persistent` every attempt at a body meets the fate of the first.
    """
    teacher, attempts, outcomes = LocalTeacher(scenes), Counter(), Counter()

    def answer(body):
        asked = json.dumps(body)
        attempts[asked] += 1
        chance = random.Random(f"{asked} {1 if persistent else attempts[asked]}")
        kind = chance.choice(kinds) if chance.random() < rate else ""
        outcomes[kind] += 1
        if kind.startswith("http"):
            return int(kind[-3:]), kind, {"Retry-After": "0.1"}
        if kind in _INSTEAD:
            return 200, chance.choice(_INSTEAD[kind]), {}
        status, payload = server.completion(asked.encode(), teacher)
        if kind in _ENDS and status == 200:
            choice = payload["choices"][0]
            text = choice["message"]["content"]
            choice["message"]["content"] = "" if kind == "empty" else text[: len(text) // 2]
            choice["finish_reason"] = _ENDS[kind]
        data = json.dumps(payload).encode()
        if kind in ("disconnect", "half_reply", "drip"):
            pieces = [data[at : at + 40] for at in range(0, len(data), 40)]
            come = {"disconnect": 0, "half_reply": len(pieces) // 2, "drip": None}[kind]
            return 200, Pieces(pieces[:come], len(data)), {}
        return status, data, {}

    with endpoint(answer) as (base_url, _):
        yield base_url, outcomes
