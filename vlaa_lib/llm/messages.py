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

from .endpoints import Endpoint
from .ledger import Reply, call_key

CHARS_A_TOKEN = 4  # ours: the usual rule of thumb for English
IMAGE_TOKENS = 1000  # ours: about what GPT-4o counts for a picture of 1024 x 1024 pixels
# formats that endpoints take as they are, by PIL's name; others are sent as PNG
SENT_AS = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",  # a phone's JPEG with a second picture behind the first
    "WEBP": "image/webp",
    "GIF": "image/gif",
}

EMPTY = "empty reply"
_PROBLEMS = {
    "length": "reply cut at the token limit",
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
    """One request got no reply; `reason` is counted, `detail` is about this request."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


SLOT = re.compile(r"\{(caption|question|input|gold|pred)\}")


def fill(template: str, **values: str) -> str:
    """Put values into a template's slots, in one pass: braces inside a value stay text.

    `str.format` would trip over LaTeX braces, in templates and values alike.

    >>> fill("Q: {question} in {braces}", question="what is {gold}?", gold="3")
    'Q: what is {gold}? in {braces}'
    """
    return SLOT.sub(lambda slot: values[slot[1]], template)


def key_of(endpoint: Endpoint, request: Request, images: Path) -> tuple[str, bytes]:
    """Return a request's key in the ledger, and the bytes of its image file; none for no image.

    Raises:
        CallFailed: the file cannot be read.
    """
    try:
        image = (images / request.image).read_bytes() if request.image else b""
    except OSError as error:
        raise CallFailed("unusable image", f"{request.image}: {error.strerror}") from None
    digest = hashlib.sha256(image).hexdigest() if image else ""
    key = call_key(request.step, endpoint.model, endpoint.settings, request.text, digest)
    return key, image


def data_url(image: str, data: bytes, images: Path) -> str:
    """Return the file's own bytes as a data URL. Raises CallFailed: they are no safe image."""
    from PIL import Image

    from vlaa_lib.images import ImageError, open_image

    try:
        picture = open_image(image, images)
    except ImageError as error:
        raise CallFailed("unusable image", str(error)[:300]) from None
    kind = Image.open(io.BytesIO(data)).format  # header only; names can lie
    if kind not in SENT_AS:
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        kind, data = "PNG", stream.getvalue()
    return f"data:{SENT_AS[kind]};base64,{base64.b64encode(data).decode()}"


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
        CallFailed: there is no message in it, or its content is no text.
    """
    try:
        found = json.loads(data)
        choice, usage = found["choices"][0], found.get("usage")
        message = choice["message"]
        content = message.get("content")
        if not isinstance(content, (str, type(None))):
            raise TypeError
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        said = data[:80].decode("utf-8", "replace")
        detail = f"no chat completion (is the address right?), it begins {said!r}"
        raise CallFailed("no chat completion", detail) from None
    text, refusal = _text(content), _text(message.get("refusal"))
    problem = _PROBLEMS.get(_text(choice.get("finish_reason")), "")
    if refusal:
        problem = f"the teacher refused: {refusal[:200]}"
    elif not problem and not text.strip():
        problem = EMPTY
    usage = usage if isinstance(usage, dict) else {}
    counts = [_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")]
    if not any(counts):
        counts = [sent_tokens, len(text) // CHARS_A_TOKEN]
    return Reply(
        text=text,
        model=endpoint.model,
        # beside the text: `reasoning_content` (DeepSeek, older vLLM) or `reasoning` (newer vLLM)
        reasoning=_text(message.get("reasoning_content")) or _text(message.get("reasoning")),
        problem=problem,
        prompt_tokens=counts[0],
        completion_tokens=counts[1],
        cost=endpoint.cost(*counts),
    )


def texts_of(replies: Iterable[Reply | CallFailed], unusable: Counter[str]) -> list[str | None]:
    """Return the text of each reply; None where it is unusable, which is counted by its reason."""
    found: list[str | None] = []
    for reply in replies:
        # a reply cut off or blocked is a problem, whatever its text holds
        problem = reply.reason if isinstance(reply, CallFailed) else reply.problem
        found.append(None if problem else reply.text)
        if problem:  # what stands behind the colon of a refusal quotes the model
            unusable[problem.partition(":")[0]] += 1
    return found


def _text(value: Any) -> str:
    """Return a text that any file can hold; anything else is none."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _count(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 2**31 else 0
