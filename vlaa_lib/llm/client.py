"""The client: OpenAI-compatible endpoints behind the ledger, within limits.

From the outside in: `ask_all`, the `Client` that works through items, asks and pays, and what a
call without a reply means.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

from vlaa_lib import Halted, VlaaError
from vlaa_lib.escape import say

from .apart import GRACE_S, run_apart
from .endpoints import Endpoint
from .ledger import Ledger, Reply
from .messages import (
    EMPTY,
    UNFINISHED,
    CallFailed,
    Request,
    body,
    data_url,
    key_of,
    read_completion,
)  # fmt: skip
from .transport import Traffic, http_client, redacted, shown_address, unmasked

S = TypeVar("S")
T = TypeVar("T")

# HTTP statuses that speak of one request, not of the endpoint: bad, forbidden (moderation), too
# large, unprocessable. All others can hit every record alike.
ABOUT_THE_RECORD = (400, 403, 413, 422)
FATAL = (401, 402, 404)  # wrong key, no money left, wrong address or model: never about one record
TRIES = 3  # ours: how often a reply that is empty, unfinished or no chat completion is asked for
FREE_BYTES = 64 * 2**20  # ours: room for the replies in flight, and SQLite's own files
WINDOW = 1024  # ours: items that may be finished and wait for a slow one before them


@dataclass(frozen=True)
class Limits:
    """How hard, how long and for how much an endpoint is asked.

    Attributes:
        concurrency: calls at a time.
        timeout_s: of one try of one call, to the last byte of its reply.
        max_retries: of one call, with the `openai` client's back-off, jitter and `Retry-After`.
        max_cost, max_tokens: in US dollars and in prompt and completion tokens; calls in flight
            are finished and can pass them. None: no limit.
    """

    concurrency: int = 8
    timeout_s: float = 600.0
    max_retries: int = 5
    max_cost: float | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            may_be_0 = name == "max_retries"
            if value is not None and not (value > 0 or (value == 0 and may_be_0)):  # NaN neither
                least = "0 or more" if may_be_0 else "above 0"
                raise VlaaError(f"{name} is {value}; it must be {least}")


@dataclass
class Spent:
    """What all calls that share it have cost; it counts towards the limits."""

    dollars: float = 0.0
    tokens: int = 0


class Answered(NamedTuple):
    """A reply, whether this run paid for it, and whether its call is met for the first time."""

    reply: Reply
    paid: bool
    is_first: bool


def ask_all(
    requests: Sequence[Request],
    endpoint: Endpoint,
    ledger: str | Path,
    images: str | Path = "",
    limits: Limits | None = None,
    spent: Spent | None = None,
) -> list[Reply | CallFailed]:
    """Return the reply to each request, or why there is none; calls run side by side.

    Give the same `spent` again where the budgets are of several askings together.

    Raises:
        VlaaError: the endpoint has no address or key, or answers nobody; an unusable ledger.
        Halted: the budget is spent or the disk nearly full; calls in flight were finished.
    """
    endpoints = dict.fromkeys((request.step for request in requests), endpoint)
    client = Client(endpoints, "", ledger, images, limits, spent)
    found: list[Reply | CallFailed] = []

    async def reply_to(request: Request) -> Reply | CallFailed:
        try:
            return (await client.ask(request)).reply
        except CallFailed as error:
            return error

    if requests:
        client.work_through(requests, reply_to, found.append)
    return found


class Client:
    """Ask each question once: from the ledger file, else over the network.

    `base_url` is that of the endpoints that name none; `images` is the image root; `is_alone` as of
    the `Ledger`.
    """

    def __init__(
        self,
        endpoints: Mapping[str, Endpoint],
        base_url: str,
        ledger: str | Path,
        images: str | Path,
        limits: Limits | None = None,
        spent: Spent | None = None,
        is_alone: bool = False,
    ) -> None:
        from openai import AsyncOpenAI

        self._is_alone, self._traffic = is_alone, Traffic()
        self._limits, self._spent = limits or Limits(), spent or Spent()
        self._endpoints, self._path, self._images = endpoints, ledger, Path(images)
        self._in_flight: dict[str, asyncio.Task[Reply]] = {}
        self._heard: set[str] = set()  # steps ever answered: one that was may refuse many records
        self._missed: Counter[str] = Counter()  # step -> calls in a row that got no reply
        self._lost: Counter[str] = Counter()  # step -> calls that got no reply
        self._last: dict[str, str] = {}  # step -> the endpoint's last words instead of a reply
        self._has_refused = False
        self._end: VlaaError | None = None  # why no further call makes sense

        @cache  # steps of one endpoint share connections
        def connected(address: str, key: str) -> AsyncOpenAI:
            limits = {"timeout": self._limits.timeout_s, "max_retries": self._limits.max_retries}
            http = http_client(address, self._limits.timeout_s, self._traffic)
            return AsyncOpenAI(base_url=address, api_key=key, http_client=http, **limits)

        self._clients: dict[str, AsyncOpenAI] = {}
        for step, endpoint in endpoints.items():
            address = endpoint.base_url or base_url
            if not address:
                raise VlaaError(f"{step}: no address; give it a base_url, or one to the run")
            if self._limits.max_cost is not None and not any(endpoint.price):
                raise VlaaError(f"{step}: no price, so max_cost would never be reached")
            self._clients[step] = connected(address, endpoint.key(address))

        self._keys = {client.api_key for client in self._clients.values()}

    def work_through(
        self, items: Iterable[S], work: Callable[[S], Awaitable[T]], write: Callable[[T], None]
    ) -> None:
        """Work on several items at a time; write what became of them in their order. Once only.

        Raises:
            VlaaError: calls were made, and no step was ever answered; and what `ask` raises.
        """

        async def main() -> None:
            with Ledger(self._path, self._is_alone) as self._ledger:
                known = self._endpoints.items()
                self._heard = {s for s, made in known if self._ledger.knows(s, made.model)}
                within_s = None
                try:
                    await self._in_order(items, work, write)
                except asyncio.CancelledError:
                    within_s = GRACE_S
                    raise
                finally:
                    await self._finish(within_s)
                    for client in self._clients.values():
                        with contextlib.suppress(RuntimeError):  # a loop that is closing already
                            await client.close()

        try:
            run_apart(main)
            if any(self._missed.values()) and not self._heard and not self._has_refused:
                step = next(iter(self._missed))
                said = f"no call was answered, last: {self._last[step]}"
                self._end = self._unreachable(step, said)
                raise self._end
        finally:
            for step, said in () if self._end else self._last.items():
                lost = f"{self._lost[step]} calls got no reply"
                say(f"{self._teacher(step)}: {lost}, last: {said}", is_error=True)

    async def _finish(self, within_s: float | None) -> None:
        """Wait for what is asked, since it is paid, so that the ledger has it.

        Args:
            within_s: no further try starts, and what is not there by then is given up.
        """
        if within_s is not None:
            self._traffic.is_stopping = True
            for call in self._in_flight.values():
                if call not in self._traffic.calls:  # it waits for another try
                    call.cancel()
        if calls := list(self._in_flight.values()):
            done, late = await asyncio.wait(calls, timeout=within_s)
            for call in done:  # looked at, or the loop complains of an error that nobody minds
                call.cancelled() or call.exception()
            for call in late:
                call.cancel()
            if late:
                lost = f"{len(late)} calls had no reply after {within_s:g} s"
                say(f"{lost}: the next run asks them again", is_error=True)

    async def _in_order(
        self, items: Iterable[S], work: Callable[[S], Awaitable[T]], write: Callable[[T], None]
    ) -> None:
        free, waiting = asyncio.Semaphore(self._limits.concurrency), deque()
        try:
            for item in items:
                await free.acquire()
                waiting.append(asyncio.ensure_future(work(item)))
                waiting[-1].add_done_callback(lambda _: free.release())
                while waiting and (waiting[0].done() or len(waiting) == WINDOW):
                    write(await waiting[0])
                    waiting.popleft()
            for task in waiting:
                write(await task)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def ask(self, request: Request) -> Answered:
        """Return the reply to a request; two equal requests at a time are one call.

        Raises:
            CallFailed: this request got no reply, or its image cannot be used.
            VlaaError: the endpoint answers nobody, or the ledger cannot be used.
            Halted: the call is not in the ledger, and the budget is spent or the disk nearly full.
        """
        key, image = key_of(self._endpoints[request.step], request, self._images)
        if known := self._ledger.get(key):
            self._heard.add(request.step)
            return Answered(known, False, self._ledger.meet(key))
        if paid := key not in self._in_flight:
            self._may_go_on(request.step)
            call = self._in_flight[key] = asyncio.create_task(self._pay(key, request, image))
            call.add_done_callback(lambda _: self._in_flight.pop(key))
        # shielded: an interrupt ends the waiting, not the call that is paid already
        reply = await asyncio.shield(self._in_flight[key])
        return Answered(reply, paid, self._ledger.meet(key))

    def _may_go_on(self, step: str) -> None:
        limits, spent, path = self._limits, self._spent, self._ledger.path
        if self._end:
            raise self._end
        why = ""
        if limits.max_cost is not None and spent.dollars >= limits.max_cost:
            why = f"the budget of {limits.max_cost} dollars is spent ({spent.dollars:.4f})"
        elif limits.max_tokens is not None and spent.tokens >= limits.max_tokens:
            why = f"the budget of {limits.max_tokens} tokens is spent ({spent.tokens})"
        elif shutil.disk_usage(path.parent).free < FREE_BYTES:
            why = f"{path.parent}: fewer than {FREE_BYTES >> 20} MiB are free"
        if why:
            raise Halted(f"{step}: {why}. Every reply is in {path}: start again, with more to "
                         "spend or more room, to go on from there")  # fmt: skip

    async def _pay(self, key: str, request: Request, image: bytes) -> Reply:
        """Ask until there is a reply with a text in it; tokens and cost are those of all tries."""
        from openai import OpenAIError

        step, endpoint = request.step, self._endpoints[request.step]
        url = ""
        if request.image:
            # decoding a large picture takes long enough to keep all other calls waiting
            url = await asyncio.to_thread(data_url, request.image, image, self._images)
        create = self._clients[step].chat.completions.with_raw_response.create
        started, sent, got = time.perf_counter(), 0, 0
        for tries_left in reversed(range(TRIES)):
            try:
                said = await create(**body(endpoint, request.text, url))
                reply = read_completion(said.http_response.content, endpoint, request.tokens)
                failed = None
            except (OpenAIError, CallFailed) as error:
                failed = error
                reply = error.paid if isinstance(error, CallFailed) else Reply("")
            sent, got = sent + reply.prompt_tokens, got + reply.completion_tokens
            self._spent.dollars += reply.cost
            self._spent.tokens += reply.prompt_tokens + reply.completion_tokens
            reply = replace(
                reply, prompt_tokens=sent, completion_tokens=got, cost=endpoint.cost(sent, got),
                seconds=round(time.perf_counter() - started, 4),
            )  # fmt: skip
            if failed and not (isinstance(failed, CallFailed) and tries_left):
                failed = self._unanswered(step, failed)
                failed.paid = reply if sent or got else Reply("")
                raise failed from None
            if not failed and reply.problem != EMPTY:
                break
        self._heard.add(step)
        self._missed[step] = 0
        # a model that was told its own key may say it
        said = {k: self._hidden(getattr(reply, k), 12) for k in ("text", "reasoning", "problem")}
        reply = replace(reply, **said)
        self._ledger.put(key, step, reply)
        return reply

    def _unanswered(self, step: str, error: Exception) -> Exception:
        """Count a call without a reply; return what it means: for its record, or for the run."""
        status, said = getattr(error, "status_code", None), self._told(error)
        self._last[step] = said
        self._lost[step] += 1
        is_refusal = status in ABOUT_THE_RECORD
        self._has_refused |= is_refusal
        reason = self._hidden(error.reason) if isinstance(error, CallFailed) else ""
        is_half = reason.startswith(UNFINISHED)
        if is_half:
            self._heard.add(step)
        # where it answers others and refuses this one, the record is at fault
        self._missed[step] = 0 if is_refusal and step in self._heard else self._missed[step] + 1
        # ours: two rounds of failures by every worker mean that nobody is there
        patience = max(8, 2 * self._limits.concurrency)
        is_fatal = status in FATAL or (status and 300 <= status < 400)
        if is_fatal or self._missed[step] >= patience:
            what = f"{self._missed[step]} calls in a row got no reply, last: {said}"
            self._end = self._unreachable(step, what)
            return self._end
        if is_refusal:
            return CallFailed(f"refused by the endpoint (HTTP {status})", said)
        kind = f"HTTP {status}" if status else type(error).__name__.removeprefix("API")
        kind = reason or kind
        return CallFailed(reason if is_half else f"no reply from the endpoint ({kind})", said)

    def _unreachable(self, step: str, what: str) -> VlaaError:
        return VlaaError(
            f"{self._teacher(step)}: {what}; check the address, the key and the model name and "
            "start again: finished calls are in the ledger"
        )

    def _teacher(self, step: str) -> str:
        return f"teacher of {step} at {shown_address(str(self._clients[step].base_url))}"

    def _told(self, error: Exception) -> str:
        """Return an error's text in one line, without control characters and without any key."""
        text = error.detail if isinstance(error, CallFailed) else str(error.__cause__ or error)
        if response := getattr(error, "response", None):
            if response.has_redirect_location:
                to = response.headers["location"]
                text = (f"HTTP {response.status_code} to {to}, and redirects are never followed; "
                        "where you trust it, give it as the address")  # fmt: skip
            elif len(text) <= 40 and response.text:
                # where the client finds no message of OpenAI's shape it says the status alone
                text += f": {response.text}"
        text = unmasked(self._hidden(text[:4000]), self._keys)
        shown = "".join(char if char.isprintable() else " " for char in text)
        return " ".join(shown.split())[:400] or type(error).__name__

    def _hidden(self, text: str, least: int = 6) -> str:
        return redacted(text, self._keys, least)
