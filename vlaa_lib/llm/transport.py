"""The wire: where a call may go, how many bytes and seconds it may take, and which keys it hides.

A call never follows a redirect, since what another host says is no reply of the teacher's, and
one to this machine never leaves it through a proxy.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import zlib
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote, urlsplit

# ours: a hundred times the longest reply of a reasoner; counted as it came, and unpacked
MAX_REPLY_BYTES = 16 * 2**20


def is_loopback(address: str) -> bool:
    """Tell whether an address is on this machine.

    >>> is_loopback("http://127.0.0.1:8000/v1"), is_loopback("http://localhost.example.com/v1")
    (True, False)
    """
    host = (urlsplit(address).hostname or "").rstrip(".")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def keep_from_proxy(address: str) -> None:
    """Let other libraries of this process reach a server on this machine without a proxy too."""
    if is_loopback(address):
        for name in ("NO_PROXY", "no_proxy"):
            hosts = [os.environ.get(name, ""), urlsplit(address).hostname]
            os.environ[name] = ",".join(filter(None, hosts))


def shown_address(address: str) -> str:
    """Return an address as it may be told: without user, password and query, which can be keys.

    >>> shown_address("https://me:secret@example.com:8000/v1?key=secret")
    'https://example.com:8000/v1'
    """
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


class Traffic:
    """The calls whose try is under way or answered, and whether further tries may start."""

    def __init__(self) -> None:
        self.calls: set[asyncio.Task | None] = set()
        self.is_stopping = False


def http_client(address: str, timeout_s: float, traffic: Traffic) -> Any:
    """Return the client that a try of a call goes through, for `openai`.

    Args:
        timeout_s: of one try from its first byte to its last, however slowly they come.
        traffic: once it is stopping, a further try counts as cancelled.
    """
    import httpx2  # openai's own
    from openai import DefaultAsyncHttpxClient

    class Bounded(DefaultAsyncHttpxClient):
        async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
            if traffic.is_stopping:
                raise asyncio.CancelledError
            options["stream"] = True  # else the body is unpacked before it can be measured
            traffic.calls.add(call := asyncio.current_task())
            status = 599
            try:
                response = await asyncio.wait_for(self._whole(request, options), timeout_s)
                status = response.status_code
                return response
            except asyncio.TimeoutError:
                said = f"no end of the reply within {timeout_s:g} s"
                raise httpx2.ReadTimeout(said, request=request) from None
            finally:
                if status >= 300:  # it may sleep now until another try
                    traffic.calls.discard(call)

        async def _whole(self, request: httpx2.Request, options: dict) -> httpx2.Response:
            got = await super().send(request, **options)
            try:
                raw = bytearray()
                async for piece in got.aiter_raw():
                    raw += piece
                    if len(raw) > MAX_REPLY_BYTES:
                        break
            finally:
                await got.aclose()
            coding = got.headers.get("content-encoding", "identity").lower()
            dropped = ("content-encoding", "content-length", "transfer-encoding")
            headers = [(k, v) for k, v in got.headers.multi_items() if k.lower() not in dropped]
            content = unpacked(bytes(raw), coding)
            return httpx2.Response(got.status_code, headers=headers, content=content,
                                   request=request)  # fmt: skip

    return Bounded(
        timeout=timeout_s, follow_redirects=False, trust_env=not is_loopback(address),
        # what an endpoint could pack a thousandfold and more is not asked for
        headers={"Accept-Encoding": "gzip"},
    )  # fmt: skip


def unpacked(data: bytes, coding: str) -> bytes:
    """Undo gzip, up to one byte more than a reply may have; what cannot be undone stays."""
    if coding not in ("gzip", "x-gzip", "deflate"):
        return data
    inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)  # either header
    try:
        return inflate.decompress(data, MAX_REPLY_BYTES + 1)
    except zlib.error:
        return data


# --- keys ----------------------------------------------------------------------------------------

# `sk-ab***yz` and the like; bounded, since the text is somebody else's
_MASKED = re.compile(r"[\w.-]{0,64}(?:\*{2,}|[•…]+|\.{3,})[\w.*•…-]{0,64}")


def redacted(text: str, keys: Iterable[str], least: int = 6) -> str:
    """Return a text without any key, whole or in parts, as it is or as an address spells it.

    Args:
        least: characters of a part that is taken for one of a key. What a model wrote needs a
            large one: a short part of a key may well be a word. Whole keys of eight always go.

    >>> redacted("Incorrect key sk-abcdef54 of you", ["sk-abcdef543219876"])
    'Incorrect key *** of you'
    """
    for key in {form for given in keys for form in (given, quote(given, safe=""))}:
        if len(key) < min(least, 8):  # no secret, such as the "none" of a server on this machine
            continue
        text = text.replace(key, "***")
        parts = {key[at : at + least] for at in range(len(key) - least + 1)}
        spans: list[list[int]] = []
        for at in range(len(text) - least + 1):
            if text[at : at + least] in parts:
                if not spans or at > spans[-1][1]:
                    spans.append([at, at])
                spans[-1][1] = at + least
        for start, end in reversed(spans):
            text = f"{text[:start]}***{text[end:]}"
    return text


def unmasked(text: str, keys: Iterable[str]) -> str:
    """Take what a masked key still shows of it out of an error's text: OpenAI's name both ends.

    >>> unmasked("Incorrect key: sk-ab****9876. Go on...", ["sk-abcdef543219876"])
    'Incorrect key: *** Go on...'
    """

    def hidden(word: re.Match) -> str:
        ends = [part for part in re.split(r"[*•…]+|\.{3,}", word[0].rstrip(".")) if len(part) > 2]
        return "***" if any(end in key for end in ends for key in keys) else word[0]

    return _MASKED.sub(hidden, text)
