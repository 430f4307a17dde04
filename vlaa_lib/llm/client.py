"""The teacher's client: OpenAI-compatible endpoints behind the ledger."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vlaa_lib import Halted

from .endpoints import Endpoint, EndpointError
from .ledger import Ledger, Reply
from .messages import (
    CHARS_A_TOKEN,
    EMPTY,
    IMAGE_TOKENS,
    CallFailed,
    NotACompletion,
    Request,
    body,
    data_url,
    key_of,
    read_completion,
    read_image,
)

if TYPE_CHECKING:
    import httpx
    from openai import APIStatusError, AsyncOpenAI

# HTTP statuses that speak of one request, not of the endpoint: bad, forbidden (moderation), too
# large, unprocessable. All others can hit every record alike.
ABOUT_THE_RECORD = (400, 403, 413, 422)
# ours: pictures larger than this are decoded beside the loop; for small ones the change of threads
# costs more than the work (1.5 ms a record, measured)
THREAD_BYTES = 256 * 2**10
EMPTY_TRIES = 3  # ours: how often an empty reply is asked for again
FREE_BYTES = 64 * 2**20  # ours: room for the replies in flight, and SQLite's own files

FATAL = ("HTTP 401", "HTTP 402")  # wrong key, no money left: never about one record


class BudgetSpent(Halted):
    """A run that stopped cleanly before its end; the message says how far it came."""


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

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            ValueError: a value is too small.
        """
        for name, least in (("concurrency", 1), ("max_retries", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("timeout_s", "max_cost", "max_tokens"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ValueError(f"{name} is {value}; it must be above 0")


@dataclass
class _Health:
    """How one step's endpoint is doing.

    Attributes:
        failures: calls in a row that can hit every record alike.
        refusals: calls that it refused; they matter while it has `replied` to none.
    """

    failures: int = 0
    refusals: int = 0
    replied: bool = False


class Teacher:
    """Ask each question once: from the ledger, else over the network. One event loop only.

    Use as an async context manager; it closes its connections.

    Args:
        base_url: of the steps whose endpoint names none.
        spent: dollars and tokens that count towards the limits already.
    """

    def __init__(
        self,
        endpoints: Mapping[str, Endpoint],
        base_url: str,
        ledger: Ledger,
        images: Path,
        limits: Limits,
        spent: tuple[float, int] = (0.0, 0),
    ) -> None:
        self._endpoints, self._ledger, self._images = endpoints, ledger, images
        self._limits = limits
        # ours: two rounds of failures by every worker mean that nobody is there
        self._patience = max(8, 2 * limits.concurrency)
        self._in_flight: dict[str, asyncio.Task[Reply]] = {}
        self._health = {
            step: _Health(replied=ledger.knows(step, endpoint.model))
            for step, endpoint in endpoints.items()
        }
        self._cost, self._tokens = spent
        self._secrets: set[str] = set()
        made: dict[tuple[str, str], AsyncOpenAI] = {}  # steps of one endpoint share connections
        self._clients: dict[str, AsyncOpenAI] = {}
        for step, endpoint in endpoints.items():
            address = endpoint.base_url or base_url
            if not address:
                raise EndpointError(f"{step}: no address; give it a base_url, or one to the run")
            if limits.max_cost is not None and not any(endpoint.price):
                raise EndpointError(f"{step}: no price, so max_cost would never be reached")
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
        # what is asked is paid: wait for it, so that the ledger has it, whatever ended the run
        await asyncio.gather(*self._in_flight.values(), return_exceptions=True)
        for client in self._clients.values():
            with contextlib.suppress(RuntimeError):  # a loop that is closing already
                await client.close()

    @property
    def spent(self) -> tuple[float, int]:
        """US dollars and tokens that count towards the limits."""
        return self._cost, self._tokens

    async def ask(self, request: Request) -> Answered:
        """Return the reply to a request; two equal requests at a time are one call.

        Raises:
            CallFailed: this request got no reply, or its image cannot be used.
            TeacherUnreachable: the endpoint has answered nobody for too long.
            Stopped: the call is not in the ledger, and no more may be made.
        """
        image = read_image(request.image, self._images) if request.image else b""
        key = key_of(self._endpoints[request.step], request, image)
        if known := self._ledger.get(key):
            self._health[request.step].replied = True
            return Answered(known, key, paid=False)
        call = self._in_flight.get(key)
        paid = call is None
        if call is None:
            self._may_go_on()
            call = asyncio.create_task(self._pay(key, request, image))
            self._in_flight[key] = call
            call.add_done_callback(lambda _: self._in_flight.pop(key))
        return Answered(await asyncio.shield(call), key, paid)

    def check_reached(self) -> None:
        """Raise TeacherUnreachable if calls were made and no step ever had a reply."""
        failed = [step for step, state in self._health.items() if state.failures]
        heard = any(state.replied or state.refusals for state in self._health.values())
        if failed and not heard:
            raise self._unreachable(failed[0], "no call was answered")

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
        if len(image) > THREAD_BYTES:
            url = await asyncio.to_thread(data_url, request.image, image, self._images)
        elif image:
            url = data_url(request.image, image, self._images)
        started, step = time.perf_counter(), request.step
        try:
            reply = await self._call(request, url)
        except APIStatusError as error:
            if error.status_code in ABOUT_THE_RECORD:
                raise self._refused(step, error) from None
            raise self._failed(step, f"HTTP {error.status_code}", error) from None
        except APIConnectionError as error:
            cause = error.__cause__ or error
            is_garbage = type(cause).__name__ == "DecodingError"  # see `_read_whole`
            kind = "no chat completion" if is_garbage else type(error).__name__
            raise self._failed(step, kind, cause if str(cause) else error) from None
        except (OpenAIError, NotACompletion) as error:
            raise self._failed(step, type(error).__name__, error) from None
        reply = replace(reply, seconds=round(time.perf_counter() - started, 4))
        self._health[step] = _Health(replied=True)
        self._ledger.put(key, step, reply)
        return reply

    async def _call(self, request: Request, url: str) -> Reply:
        """Ask until the reply is not empty, a few times; tokens and cost are those of all tries."""
        endpoint, spent = self._endpoints[request.step], [0, 0]
        sent_tokens = len(request.text) // CHARS_A_TOKEN + (IMAGE_TOKENS if url else 0)
        for _ in range(EMPTY_TRIES):
            raw = await self._clients[request.step].chat.completions.with_raw_response.create(
                **body(endpoint, request.text, url)
            )
            reply = read_completion(raw.http_response.json(), endpoint, sent_tokens)
            spent = [spent[0] + reply.prompt_tokens, spent[1] + reply.completion_tokens]
            self._cost += reply.cost
            self._tokens += reply.prompt_tokens + reply.completion_tokens
            if reply.problem != EMPTY:
                break
        return replace(
            reply,
            prompt_tokens=spent[0],
            completion_tokens=spent[1],
            cost=endpoint.cost(*spent),
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
        if not response.is_success:
            return
        try:
            read_completion(json.loads(response.content), None)
        except (ValueError, RecursionError):
            said = f"no chat completion (is the address right?), it begins {response.text[:80]!r}"
            raise errors.DecodingError(said, request=response.request) from None

    def _failed(self, step: str, kind: str, error: BaseException) -> Exception:
        """Count a failure that can hit every record; say which exception it makes."""
        state = self._health[step]
        state.failures += 1
        if kind in FATAL or state.failures >= self._patience:
            said = f"{state.failures} calls in a row failed, last: {self._safe(error)}"
            return self._unreachable(step, said)
        return CallFailed(f"no reply from the endpoint ({kind})", self._safe(error))

    def _refused(self, step: str, error: APIStatusError) -> Exception:
        """Say which exception a refused call makes; refusing everybody speaks of the endpoint."""
        state = self._health[step]
        state.failures, state.refusals = 0, state.refusals + 1
        if not state.replied and state.refusals >= self._patience:
            said = f"the first {state.refusals} calls were refused, last: {self._safe(error)}"
            return self._unreachable(step, said)
        reason = f"refused by the endpoint (HTTP {error.status_code})"
        return CallFailed(reason, self._safe(error))

    def _unreachable(self, step: str, what: str) -> TeacherUnreachable:
        return TeacherUnreachable(
            f"teacher of {step} at {self._clients[step].base_url}: {what}; check the address, the "
            "key and the model name and start again: finished calls are in the ledger"
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
