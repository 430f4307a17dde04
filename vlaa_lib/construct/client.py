"""The teacher's client: OpenAI-compatible endpoints behind the ledger."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import io
import json
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, NamedTuple

from vlaa_lib.construct.endpoints import Endpoint
from vlaa_lib.construct.ledger import Ledger, Reply, call_key
from vlaa_lib.construct.steps import Request

if TYPE_CHECKING:
    import httpx
    from openai import APIStatusError, AsyncOpenAI
    from openai.types.chat import ChatCompletion

# HTTP statuses that speak of one request, not of the endpoint: bad, forbidden (moderation), too
# large, unprocessable. All others can hit every record alike.
ABOUT_THE_RECORD = (400, 403, 413, 422)
EMPTY_TRIES = 3  # ours: how often an empty reply is asked for again
FREE_BYTES = 64 * 2**20  # ours: room for the replies in flight, and SQLite's own files

_PROBLEMS = {
    "length": "reply cut at the token limit",
    "content_filter": "reply blocked by the endpoint's filter",
}


class CallFailed(Exception):
    """One request got no reply; `reason` is counted, `detail` is about this request."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class TeacherUnreachable(ConnectionError):
    """The endpoint answers nobody; the message names it and says what to do."""


class Stopped(Exception):
    """No further call is to be made: the budget is spent, or the disk is nearly full."""


class Answered(NamedTuple):
    """A reply, the key of its call, and whether this run paid for it."""

    reply: Reply
    key: str
    paid: bool


@dataclass(frozen=True)
class Limits:
    """How hard, how long and for how much an endpoint is asked.

    Attributes:
        concurrency: calls at a time.
        timeout_s: of one try of one call, from the request to the reply's last byte.
        max_retries: of one call, with the `openai` client's back-off, jitter and `Retry-After`.
        max_cost, max_tokens: of this run, in US dollars and in prompt and completion tokens;
            calls in flight are finished and can pass them. None: no limit.
    """

    concurrency: int = 8
    timeout_s: float = 600.0
    max_retries: int = 5
    max_cost: float | None = None
    max_tokens: int | None = None


class Teacher:
    """Ask each question once: from the ledger, else over the network. One event loop only.

    Use as an async context manager; it closes its connections.

    Args:
        base_url: of the steps whose endpoint names none.
    """

    def __init__(
        self,
        endpoints: Mapping[str, Endpoint],
        base_url: str,
        ledger: Ledger,
        images: Path,
        limits: Limits,
    ) -> None:
        self._endpoints, self._ledger, self._images = endpoints, ledger, images
        self._limits = limits
        # ours: two rounds of failures by every worker mean that nobody is there
        self._patience = max(8, 2 * limits.concurrency)
        self._in_flight: dict[str, asyncio.Task[Reply]] = {}
        self._failures = 0
        self._refusals = 0
        self._heard = self._replied = False  # any word from an endpoint in this run; any reply
        self._cost, self._tokens = 0.0, 0
        self._secrets: set[str] = set()
        made: dict[tuple[str, str], AsyncOpenAI] = {}  # steps of one endpoint share connections
        self._clients: dict[str, AsyncOpenAI] = {}
        for step, endpoint in endpoints.items():
            address = endpoint.base_url or base_url
            place = address, endpoint.key(address)
            made[place] = made.get(place) or self._client(*place)
            self._clients[step] = made[place]

    def _client(self, address: str, key: str) -> AsyncOpenAI:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        self._secrets.add(key)
        return AsyncOpenAI(
            base_url=address,
            api_key=key,
            timeout=self._limits.timeout_s,
            max_retries=self._limits.max_retries,
            http_client=DefaultAsyncHttpxClient(event_hooks={"response": [self._read_whole]}),
        )

    async def __aenter__(self) -> Teacher:
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients.values():
            with contextlib.suppress(RuntimeError):  # a loop that is closing already
                await client.close()

    async def ask(self, request: Request) -> Answered:
        """Return the reply to a request; two equal requests at a time are one call.

        Raises:
            CallFailed: this request got no reply, or its image cannot be used.
            TeacherUnreachable: the endpoint has answered nobody for too long.
            Stopped: the call is not in the ledger, and no more may be made.
        """
        image = b""
        if request.image:
            image = await asyncio.to_thread(read_image, request.image, self._images)
        key = key_of(self._endpoints[request.step], request, image)
        if known := self._ledger.get(key):
            return Answered(known, key, paid=False)
        call = self._in_flight.get(key)
        paid = call is None
        if call is None:
            self._may_go_on()
            call = asyncio.create_task(self._pay(key, request, image))
            self._in_flight[key] = call
            call.add_done_callback(lambda _: self._in_flight.pop(key))
        return Answered(await call, key, paid)

    def check_reached(self) -> None:
        """Raise TeacherUnreachable if calls were made and not one of them was answered."""
        if self._failures and not self._heard:
            raise self._unreachable("no call was answered")

    def _may_go_on(self) -> None:
        limits = self._limits
        if limits.max_cost is not None and self._cost >= limits.max_cost:
            raise Stopped(f"the budget of {limits.max_cost} dollars is spent ({self._cost:.4f})")
        if limits.max_tokens is not None and self._tokens >= limits.max_tokens:
            raise Stopped(f"the budget of {limits.max_tokens} tokens is spent ({self._tokens})")
        if shutil.disk_usage(self._ledger.path.parent).free < FREE_BYTES:
            where = self._ledger.path.parent
            raise Stopped(f"{where}: fewer than {FREE_BYTES >> 20} MiB are free; make room")

    async def _pay(self, key: str, request: Request, image: bytes) -> Reply:
        from openai import APIConnectionError, APIStatusError, OpenAIError

        url = ""
        if image:
            url = await asyncio.to_thread(data_url, request.image, image, self._images)
        started = time.perf_counter()
        try:
            reply = await self._call(request, url)
        except APIStatusError as error:
            if error.status_code not in ABOUT_THE_RECORD:
                raise self._failed(f"HTTP {error.status_code}", error) from None
            self._failures, self._heard = 0, True
            raise self._refused(error) from None
        except APIConnectionError as error:
            cause = error.__cause__ or error
            is_garbage = type(cause).__name__ == "DecodingError"  # see `_read_whole`
            kind = "no chat completion" if is_garbage else type(error).__name__
            raise self._failed(kind, cause if str(cause) else error) from None
        except OpenAIError as error:
            raise self._failed(type(error).__name__, error) from None
        reply = replace(reply, seconds=round(time.perf_counter() - started, 4))
        self._failures, self._heard, self._replied = 0, True, True
        self._cost += reply.cost
        self._tokens += reply.prompt_tokens + reply.completion_tokens
        self._ledger.put(key, request.step, reply)
        return reply

    async def _call(self, request: Request, url: str) -> Reply:
        """Ask until the reply is not empty, a few times; tokens and cost are those of all tries."""
        endpoint = self._endpoints[request.step]
        prompt_tokens = completion_tokens = 0
        for _ in range(EMPTY_TRIES):
            completion = await self._clients[request.step].chat.completions.create(
                **body(endpoint, request.text, url)
            )
            reply = read_completion(completion, endpoint)
            prompt_tokens += reply.prompt_tokens
            completion_tokens += reply.completion_tokens
            if reply.problem != EMPTY:
                break
        cost = endpoint.cost(prompt_tokens, completion_tokens)
        return replace(
            reply, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, cost=cost
        )

    async def _read_whole(self, response: httpx.Response) -> None:
        """Read a response in bounded time and check what it is.

        What is raised here is the HTTP library's own, so the client backs off and tries again.
        """
        errors = sys.modules[type(response).__module__.partition(".")[0]]  # httpx, or httpx2
        try:
            # the library's own limit is between two pieces: a slow drip would never reach it
            await asyncio.wait_for(response.aread(), self._limits.timeout_s)
        except asyncio.TimeoutError:
            said = f"no end of the reply within {self._limits.timeout_s} s"
            raise errors.ReadTimeout(said, request=response.request) from None
        if response.status_code != 200:
            return
        try:
            content = json.loads(response.content)["choices"][0]["message"]["content"]
            if not isinstance(content, (str, NoneType)):
                raise TypeError
        except (ValueError, LookupError, TypeError, RecursionError):
            said = f"no chat completion (is the address right?), it begins {response.text[:80]!r}"
            raise errors.DecodingError(said, request=response.request) from None

    def _failed(self, kind: str, error: BaseException) -> Exception:
        """Count a failure that can hit every record; say which exception it makes."""
        self._failures += 1
        if self._failures >= self._patience:
            said = f"{self._failures} calls in a row failed, last: {self._safe(error)}"
            return self._unreachable(said)
        return CallFailed(f"no reply from the endpoint ({kind})", self._safe(error))

    def _refused(self, error: APIStatusError) -> Exception:
        """Say which exception a refused call makes; refusing everybody speaks of the endpoint."""
        self._refusals += 1
        if not self._replied and self._refusals >= self._patience:
            said = f"the first {self._refusals} calls were refused, last: {self._safe(error)}"
            return self._unreachable(said)
        reason = f"refused by the endpoint (HTTP {error.status_code})"
        return CallFailed(reason, self._safe(error))

    def _unreachable(self, what: str) -> TeacherUnreachable:
        addresses = ", ".join(sorted({str(c.base_url) for c in self._clients.values()}))
        return TeacherUnreachable(
            f"teacher at {addresses}: {what}; check the address, the key and the model names and "
            "start again: finished calls are in the ledger"
        )

    def _safe(self, error: BaseException) -> str:
        """Return an error's text without any key: endpoints like to quote the one they refuse."""
        text = str(error)
        if response := getattr(error, "response", None):
            # where the client finds no message of OpenAI's shape it says the status alone
            text += "" if len(text) > 40 else f": {response.text}"
        for secret in self._secrets:
            text = text.replace(secret, "***") if len(secret) > 4 else text
        return text[:400]


def key_of(endpoint: Endpoint, request: Request, image: bytes) -> str:
    """Return the ledger's key of a request."""
    digest = hashlib.sha256(image).hexdigest() if image else ""
    return call_key(request.step, endpoint.model, endpoint.settings, request.text, digest)


def read_image(image: str, images: Path) -> bytes:
    """Return an image file's bytes.

    Raises:
        CallFailed: it cannot be read.
    """
    try:
        return (images / image).read_bytes()
    except OSError as error:
        raise CallFailed("unusable image", f"{image}: {error.strerror}") from None


def data_url(image: str, data: bytes, images: Path) -> str:
    """Return the file's own bytes as a data URL, once they are known to be a safe image.

    Raises:
        CallFailed: they are not.
    """
    from PIL import Image

    from vlaa_lib.images import ImageError, open_image

    try:
        open_image(image, images)
    except ImageError as error:
        raise CallFailed("unusable image", str(error)[:300]) from None
    kind = Image.open(io.BytesIO(data)).get_format_mimetype()  # header only; names can lie
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def body(endpoint: Endpoint, text: str, url: str) -> dict[str, Any]:
    """Return the body of a chat completion request: one user message, the picture first."""
    content: Any = text
    if url:
        picture = {"type": "image_url", "image_url": {"url": url}}
        content = [picture, {"type": "text", "text": text}]
    messages = [{"role": "user", "content": content}]
    return {"model": endpoint.model, "messages": messages, **endpoint.settings}


EMPTY = "empty reply"


def read_completion(completion: ChatCompletion, endpoint: Endpoint) -> Reply:
    """Read a completion, whoever wrote it."""
    choice, usage = completion.choices[0], completion.usage
    message = choice.message
    text = message.content or ""
    problem = _PROBLEMS.get(choice.finish_reason, "")
    if message.refusal:
        problem = f"the teacher refused: {message.refusal[:200]}"
    elif not problem and not text.strip():
        problem = EMPTY
    prompt_tokens = (usage.prompt_tokens or 0) if usage else 0
    completion_tokens = (usage.completion_tokens or 0) if usage else 0
    return Reply(
        text=text,
        model=endpoint.model,
        # beside the text: `reasoning_content` (DeepSeek, older vLLM) or `reasoning` (newer vLLM)
        reasoning=getattr(message, "reasoning_content", None)
        or getattr(message, "reasoning", None)
        or "",
        problem=problem,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cost=endpoint.cost(prompt_tokens, completion_tokens),
    )
