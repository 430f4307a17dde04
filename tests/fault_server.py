"""Endpoints for tests: one that says what a test tells it to, and the local teacher on bad days."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections import Counter
from contextlib import contextmanager

from vlaa_lib import prompts
from vlaa_lib.pocket import server
from vlaa_lib.pocket.teacher import LocalTeacher, read_back


def completion(content):
    """Build a completion whose message is text, or a dict of message and choice fields."""
    fields = {"content": content} if isinstance(content, str) else dict(content)
    finish = fields.pop("finish_reason", "stop")
    message = {"role": "assistant", "content": None} | fields
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
    }


def trace(think="two and one", answer="3"):
    return prompts.join_think_answer(think, answer)


def by_step(**replies):
    """Answer each step with one reply; rewriting gives its input back unless told otherwise."""

    def answer(body):
        step = body["model"].removeprefix("teacher-")
        content = replies.get(step, {"caption": "A thing.", "verify": "Yes"}.get(step))
        if content is None and step == "rewrite":
            prompt = body["messages"][0]["content"]
            content = read_back(prompts.REWRITE_PROMPT, prompt)["input"]
        return content if isinstance(content, tuple) else (200, content, {})

    return answer


@contextmanager
def endpoint(answer):
    """Serve `answer(body) -> (status, content, error or bytes, headers)`; yield URL and bodies."""
    bodies = []

    class Told(server.Handler):
        def do_POST(self):
            data = self.rfile.read(length := int(self.headers["Content-Length"]))
            if len(data) < length:
                return  # the client died in the middle
            bodies.append(body := json.loads(data))
            status, content, headers = answer(body)
            if not isinstance(content, bytes):
                error = content if isinstance(content, dict) else {"error": {"message": content}}
                content = completion(content) if status == 200 else error
            self.send(status, content, headers)

    with server.serve(Told) as base_url:
        yield base_url, bodies


# what the official client asks again by itself, and what it hands on as if it were a reply
RETRIED = ("http_429", "http_500", "http_503", "disconnect", "half_reply")
HANDED_ON = ("garbage", "html", "wrong_shape", "drip", "empty", "truncated")
KINDS = RETRIED + HANDED_ON

_CHOICE = {"index": 0, "finish_reason": "stop"}
GARBAGE = (b"", b'{"id": "x", "choices": [{"ind', b"\x00\xff\xfe no text", b"[" * 100_000)
WRONG_SHAPES = (
    None, [], "ok", {}, {"error": {"message": "rate limit reached", "code": 429}},
    {"choices": []}, {"choices": "none"}, {"choices": [{}]}, {"choices": {"a": 1}},
    {"choices": [{"message": "text"}]}, {"choices": [_CHOICE | {"message": None}]},
    {"choices": [_CHOICE | {"message": {"role": "assistant", "content": 42}}]},
)  # fmt: skip
_PAGE = b"<!doctype html><title>502</title><h1>The gateway is having a rest</h1>"


@contextmanager
def faulty_teacher(scenes, rate, kinds=KINDS, persistent=False):
    """Serve the local teacher with faults; yield its URL and the outcomes so far, a Counter.

    Chance is seeded by body and attempt, so it does not depend on the order of the requests; with
    `persistent` every attempt at a body meets the fate of the first.
    """
    teacher, attempts, outcomes = LocalTeacher(scenes), Counter(), Counter()

    class Faulty(server.Handler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            attempts[body] += 1
            attempt = 1 if persistent else attempts[body]
            chance = random.Random(f"{hashlib.sha256(body).hexdigest()} {attempt}")
            kind = chance.choice(kinds) if chance.random() < rate else ""
            outcomes[kind] += 1
            status, payload = server.completion(body, teacher)
            if kind.startswith("http"):
                self.send(int(kind[-3:]), {"error": {"message": kind}}, {"Retry-After": "0.1"})
            elif kind == "garbage":
                self.send(200, chance.choice(GARBAGE))
            elif kind == "wrong_shape":
                self.send(200, json.dumps(chance.choice(WRONG_SHAPES)).encode())
            elif kind == "html":
                self.send(200, _PAGE, {"Content-Type": "text/html"})
            elif kind in ("disconnect", "half_reply", "drip"):
                self.send_in_pieces(kind, json.dumps(payload).encode())
            else:
                if kind and status == 200:
                    choice = payload["choices"][0]
                    text = choice["message"]["content"]
                    choice["message"]["content"] = "" if kind == "empty" else text[: len(text) // 2]
                    choice["finish_reason"] = "stop" if kind == "empty" else "length"
                self.send(status, payload)

        def send_in_pieces(self, kind, data):
            self.close_connection = True
            if kind == "disconnect":
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            pieces = [data[at : at + 40] for at in range(0, len(data), 40)]
            for piece in pieces[: len(pieces) // 2] if kind == "half_reply" else pieces:
                self.wfile.write(piece)
                self.wfile.flush()
                time.sleep(0.002)

    with server.serve(Faulty) as base_url:
        yield base_url, outcomes
