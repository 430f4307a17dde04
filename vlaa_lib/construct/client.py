"""The teacher's client: an OpenAI-compatible endpoint behind the ledger."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vlaa_lib.construct.ledger import Ledger, Reply, call_key
from vlaa_lib.construct.steps import Request

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletion

# HTTP statuses that speak of one request, not of the endpoint: bad, forbidden (moderation), too
# large, unprocessable. All others can hit every record alike.
ABOUT_THE_RECORD = (400, 403, 413, 422)

_PROBLEMS = {
    "length": "reply cut at the token limit",
    "content_filter": "reply blocked by the endpoint's filter",
}


class CallFailed(Exception):
    """One request got no reply; `reason` is counted, `detail` is about this request."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class TeacherUnreachable(RuntimeError):
    """The endpoint answers nobody; the message names it and says what to do."""


class Answered(NamedTuple):
    """A reply, the key of its call, and whether this run paid for it."""

    reply: Reply
    key: str
    paid: bool


class Teacher:
    """Ask an endpoint each question once: from the ledger, else over the network.

    Time-outs, retries and `Retry-After` are the `openai` client's own. One event loop only.

    Args:
        models: model name by step.
        settings: arguments of `chat.completions.create` by step; part of the ledger's key.
        patience: failures in a row, without any reply between, that mean the endpoint is down.
    """

    def __init__(
        self,
        client: AsyncOpenAI,
        ledger: Ledger,
        images: Path,
        models: Mapping[str, str],
        settings: Mapping[str, Mapping[str, Any]],
        patience: int,
    ) -> None:
        self._client, self._ledger, self._images = client, ledger, images
        self._models, self._settings, self._patience = models, settings, patience
        self._in_flight: dict[str, asyncio.Task[Reply]] = {}
        self._failures = 0
        self._heard = False  # any word from the endpoint in this run

    async def ask(self, request: Request) -> Answered:
        """Return the reply to a request; two equal requests at a time are one call.

        Raises:
            CallFailed: this request got no reply, or its image cannot be used.
            TeacherUnreachable: the endpoint has answered nobody for too long.
        """
        image = await asyncio.to_thread(self._read, request.image) if request.image else b""
        key = call_key(
            request.step,
            self._models[request.step],
            self._settings[request.step],
            request.text,
            hashlib.sha256(image).hexdigest() if image else "",
        )
        if known := self._ledger.get(key):
            return Answered(known, key, paid=False)
        call = self._in_flight.get(key)
        paid = call is None
        if call is None:
            call = asyncio.create_task(self._pay(key, request, image))
            self._in_flight[key] = call
            call.add_done_callback(lambda _: self._in_flight.pop(key))
        return Answered(await call, key, paid)

    def check_reached(self) -> None:
        """Raise TeacherUnreachable if calls were made and not one of them was answered."""
        if self._failures and not self._heard:
            raise self._unreachable("no call was answered")

    async def _pay(self, key: str, request: Request, image: bytes) -> Reply:
        from openai import APIStatusError, OpenAIError

        url = await asyncio.to_thread(self._data_url, request.image, image) if image else ""
        started = time.perf_counter()
        try:
            completion = await self._client.chat.completions.create(
                model=self._models[request.step],
                messages=[{"role": "user", "content": _content(request.text, url)}],
                **self._settings[request.step],
            )
            reply = _reply(completion, self._models[request.step], time.perf_counter() - started)
        except APIStatusError as error:
            if error.status_code not in ABOUT_THE_RECORD:
                raise self._failed(f"HTTP {error.status_code}", error) from None
            self._failures, self._heard = 0, True
            reason = f"refused by the endpoint (HTTP {error.status_code})"
            raise CallFailed(reason, str(error)[:300]) from None
        except (OpenAIError, ValueError) as error:  # ValueError: a body that is not JSON
            raise self._failed(type(error).__name__, error) from None
        self._failures, self._heard = 0, True
        self._ledger.put(key, request.step, reply)
        return reply

    def _failed(self, kind: str, error: Exception) -> Exception:
        """Count a failure that can hit every record; say which exception it makes."""
        self._failures += 1
        if self._failures >= self._patience:
            return self._unreachable(f"{self._failures} calls in a row failed, last: {error}")
        return CallFailed(f"no reply from the endpoint ({kind})", str(error)[:300])

    def _unreachable(self, what: str) -> TeacherUnreachable:
        return TeacherUnreachable(
            f"teacher at {self._client.base_url}: {what[:400]}; check the address, the key and the "
            "model names and start again: finished calls are in the ledger"
        )

    def _read(self, image: str) -> bytes:
        try:
            return (self._images / image).read_bytes()
        except OSError as error:
            raise CallFailed("unusable image", f"{image}: {error.strerror}") from None

    def _data_url(self, image: str, data: bytes) -> str:
        """Return the file's own bytes as a data URL, once they are known to be a safe image."""
        from PIL import Image

        from vlaa_lib.images import ImageError, open_image

        try:
            open_image(image, self._images)
        except ImageError as error:
            raise CallFailed("unusable image", str(error)[:300]) from None
        kind = Image.open(io.BytesIO(data)).get_format_mimetype()  # header only; names can lie
        return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _content(text: str, url: str) -> str | list[dict]:
    if not url:
        return text
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]


def _reply(completion: ChatCompletion, model: str, seconds: float) -> Reply:
    """Read a completion, whoever wrote it; raise ValueError where there is no choice in it."""
    if not getattr(completion, "choices", None):
        raise ValueError("the endpoint's reply holds no choices; is the address right?")
    choice, usage = completion.choices[0], completion.usage
    message = choice.message
    text = message.content or ""
    problem = _PROBLEMS.get(choice.finish_reason, "")
    if message.refusal:
        problem = f"the teacher refused: {message.refusal[:200]}"
    elif not problem and not text.strip():
        problem = "empty reply"
    return Reply(
        text=text,
        model=model,
        # beside the text: `reasoning_content` (DeepSeek, older vLLM) or `reasoning` (newer vLLM)
        reasoning=getattr(message, "reasoning_content", None)
        or getattr(message, "reasoning", None)
        or "",
        problem=problem,
        prompt_tokens=usage.prompt_tokens if usage else 0,
        completion_tokens=usage.completion_tokens if usage else 0,
        seconds=round(seconds, 4),
    )
