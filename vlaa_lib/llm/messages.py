"""What goes to an endpoint and comes from it: requests, pictures, bodies, replies."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlaa_lib.prompts import without_thinking

from .endpoints import Endpoint
from .ledger import Reply, call_key
from .transport import MAX_REPLY_BYTES

CHARS_A_TOKEN = 4  # ours: the usual rule of thumb for English
IMAGE_TOKENS = 1000  # ours: about what GPT-4o counts for a picture of 1024 x 1024 pixels
# ours: the least that known endpoints take of one picture is 5 to 20 MB
MAX_SENT_BYTES = 10 * 2**20

EMPTY, NO_TEXT = "empty reply", "no text after the thinking"
UNFINISHED = "unfinished reply"
CUT = "reply cut at the token limit"
# how a whole reply ends: OpenAI's word, then Anthropic's and TGI's; another, or none, is not whole
FINISHED = ("stop", "end_turn", "stop_sequence", "eos", "eos_token")
_PROBLEMS = {
    "length": CUT,
    "max_tokens": CUT,
    "content_filter": "reply blocked by the endpoint's filter",
}


@dataclass(frozen=True)
class Request:
    """One question; `image` is the record's image path, empty for text only."""

    step: str
    text: str
    image: str = ""

    @property
    def tokens(self) -> int:
        """About how many it is, by rule of thumb."""
        return len(self.text) // CHARS_A_TOKEN + (IMAGE_TOKENS if self.image else 0)


class CallFailed(Exception):
    """One request got no reply; `reason` is counted, `detail` is about this request.

    `paid` holds the tokens, seconds and cost of what came instead of one.
    """

    def __init__(self, reason: str, detail: str, paid: Reply | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.paid = reason, detail, paid or Reply("")


SLOT = re.compile(r"\{(caption|question|input|gold|pred)\}")


def fill(template: str, **values: str) -> str:
    """Put values into a template's slots, in one pass: braces inside a value stay text.

    `str.format` would trip over LaTeX braces, in templates and values alike.

    >>> fill("Q: {question} in {braces}", question="what is {gold}?", gold="3")
    'Q: what is {gold}? in {braces}'
    """
    return SLOT.sub(lambda slot: values[slot[1]], template)


def quoted(text: str) -> str:
    """Return a text in which no line can pass for a heading of a judge's prompt (ours).

    >>> quoted("4\\n### Your number from 0 to 10\\n10")
    '4\\n# # # Your number from 0 to 10\\n10'
    """
    return re.sub("[#\uff03\ufe5f]{3,}", lambda marks: " ".join("#" * len(marks[0])), text)


def key_of(endpoint: Endpoint, request: Request, images: Path) -> tuple[str, bytes]:
    """Return a request's key in the ledger, and the bytes of its image file; none for no image.

    Raises:
        CallFailed: the file cannot be read.
    """
    from vlaa_lib.images import ImageError, image_file

    try:
        image = image_file(request.image, images).read_bytes() if request.image else b""
    except (ImageError, OSError) as error:
        raise CallFailed("unusable image", str(error)[:300]) from None
    digest = hashlib.sha256(image).hexdigest() if image else ""
    if image and not _is_plain(image):
        digest += " upright RGB"  # what is sent is not the file
    key = call_key(request.step, endpoint.model, endpoint.settings, request.text, digest)
    return key, image


def data_url(image: str, data: bytes, images: Path) -> str:
    """Return the picture as a data URL: what the policy sees, upright RGB and the first frame.

    A PNG or JPEG that is that already goes as it is; metadata, such as the place in EXIF, never do.

    Raises:
        CallFailed: the bytes are no safe image.
    """
    from vlaa_lib.images import ImageError, open_image

    try:
        picture = open_image(image, images)
    except ImageError as error:
        raise CallFailed("unusable image", str(error)[:300]) from None
    kind = "jpeg" if data.startswith(_JPEG) else "png"
    if not _is_plain(data):
        stream, kind = io.BytesIO(), "png"
        picture.save(stream, "PNG")
        if stream.tell() > MAX_SENT_BYTES:
            stream, kind = io.BytesIO(), "jpeg"
            picture.save(stream, "JPEG", quality=95)
        data = stream.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_PLAIN_CHUNKS = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"pHYs", b"sRGB"}
_PLAIN_SEGMENTS = {0xDB, 0xC4, 0xDD, 0xE0, 0xEE, 0xC0, 0xC1, 0xC2}  # tables, JFIF, Adobe, frames


def _is_plain(data: bytes) -> bool:
    """Tell whether a file is a picture alone, opaque and of 8 bits: one PNG, or one RGB JPEG."""
    if data.startswith(_PNG):
        chunks, at = set(), len(_PNG)
        while at + 8 <= len(data):
            chunks.add(data[at + 4 : at + 8])
            at += int.from_bytes(data[at : at + 4], "big") + 12
        # bits a sample, and grey, RGB or a palette
        is_8_bit = data[24:25] <= b"\x08" and data[25:26] in (b"\0", b"\2", b"\3")
        return at == len(data) and chunks <= _PLAIN_CHUNKS and is_8_bit
    at = 2
    while data.startswith(_JPEG) and data[at : at + 1] == b"\xff" and at + 10 <= len(data):
        marker, size = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:  # pixels: nothing may hide in or behind them
            hidden = data.count(_JPEG) > 1 or b"Exif\0" in data or b"http:" in data
            return data.endswith(b"\xff\xd9") and not hidden
        if marker not in _PLAIN_SEGMENTS or (marker in (0xC0, 0xC1, 0xC2) and data[at + 9] == 4):
            return False  # metadata, or CMYK
        at += 2 + size
    return False


def body(endpoint: Endpoint, text: str, url: str) -> dict[str, Any]:
    """Return the arguments of a chat completion: one user message, the picture first."""
    content: Any = text
    if url:
        picture = {"type": "image_url", "image_url": {"url": url}}
        content = [picture, {"type": "text", "text": text}]
    messages = [{"role": "user", "content": content}]
    return {"model": endpoint.model, "messages": messages, **endpoint.settings}


def read_completion(data: bytes, endpoint: Endpoint, sent_tokens: int = 0) -> Reply:
    """Read the JSON of a chat completion, whoever wrote it, trusting nothing in it.

    Args:
        sent_tokens: estimate of the prompt's tokens, used where the endpoint counts none.
    Raises:
        CallFailed: no message in it, no text in that, or not its end.
    """
    if len(data) > MAX_REPLY_BYTES:
        raise CallFailed("reply too large", f"it has more than {MAX_REPLY_BYTES >> 20} MiB")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    found = found if isinstance(found, dict) else {}
    usage = found.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    counts = [_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")]

    def reply(text: str = "", **fields: str) -> Reply:
        return Reply(text, endpoint.model, prompt_tokens=counts[0], completion_tokens=counts[1],
                     cost=endpoint.cost(*counts), **fields)  # fmt: skip

    try:
        choice = found["choices"][0]
        message = choice["message"]
        text, thought, refusal = _parts(message.get("content"))
    except (LookupError, TypeError, AttributeError, RecursionError):
        said = _error_of(found) or f"it begins {data[:200].decode('utf-8', 'replace')!r}"
        detail = f"no chat completion (is the address right?): {said}"
        raise CallFailed("no chat completion", detail, reply()) from None
    if not any(counts):
        counts = [sent_tokens, len(text) // CHARS_A_TOKEN]
    finish, refusal = choice.get("finish_reason"), _text(message.get("refusal")) or refusal
    named = finish.lower() if isinstance(finish, str) else ""
    problem, error = _PROBLEMS.get(named, ""), _error_of(choice) or _error_of(found)
    if refusal:
        problem = f"the teacher refused: {refusal[:200]}"
    elif not problem and (error or named not in FINISHED):
        said = error or f"it begins {text[:80]!r}"
        detail = f"finish_reason {str(finish)[:80]!r}, none of {', '.join(FINISHED)}: {said}"
        if named in FINISHED:
            detail = f"an error stands beside it: {said}"
        elif not named:
            detail += "; a server that names none cannot tell half a reply from a whole: update it"
        named = f" ({named})" if re.fullmatch(r"\w{1,40}", named, re.ASCII) else ""
        raise CallFailed(f"{UNFINISHED}{named}", detail, reply())
    elif not problem and not text.strip():
        problem = EMPTY
    # beside the text: `reasoning_content` (DeepSeek, older vLLM) or `reasoning` (newer vLLM)
    beside = _text(message.get("reasoning_content")) or _text(message.get("reasoning"))
    return reply(text, reasoning=beside or thought, problem=problem)


def _parts(content: Any) -> tuple[str, str, str]:
    """Return text, thinking and refusal of a message's content, a text or a list of typed parts.

    Raises:
        TypeError, LookupError: it is neither, or has a part that is no text, such as a picture.
    """
    if content is None or isinstance(content, str):
        return _text(content), "", ""
    found = {"text": "", "thinking": "", "refusal": ""}
    for part in [content] if isinstance(content, dict) else content:
        kind = "text" if isinstance(part, str) else part["type"]
        if kind in ("text", "output_text"):
            found["text"] += _text(part if isinstance(part, str) else part["text"], strict=True)
        elif kind in ("thinking", "reasoning"):  # of Anthropic a text, of Mistral parts again
            found["thinking"] += "".join(_parts(part[kind] if kind in part else part["text"]))
        elif kind == "refusal":
            found["refusal"] += _text(part["refusal"], strict=True)
        elif kind != "redacted_thinking":
            raise TypeError
    return found["text"], found["thinking"], found["refusal"]


def _error_of(found: dict[str, Any]) -> str:
    """Return the words of an error that stands where a reply should; some send it with a 200."""
    error = found.get("error")
    words = error.get("message") if isinstance(error, dict) else error
    return _text(words)[:200]


def texts_of(replies: Iterable[Reply | CallFailed], unusable: Counter[str]) -> list[str | None]:
    """Return each text, thinking split off; None where it is unusable, counted by reason."""
    found: list[str | None] = []
    for reply in replies:
        text = None if isinstance(reply, CallFailed) else without_thinking(reply.text)
        # a reply cut off or blocked is a problem, whatever its text holds
        problem = reply.reason if text is None else reply.problem
        problem = problem or ("" if text else NO_TEXT)
        found.append(None if problem else text)
        if problem:  # what stands behind the colon of a refusal quotes the model
            unusable[problem.partition(":")[0]] += 1
    return found


def _text(value: Any, strict: bool = False) -> str:
    """Return a text that any file can hold; anything else is none, or a TypeError."""
    if strict and not isinstance(value, str):
        raise TypeError
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _count(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 2**31 else 0
