"""The local teacher itself: it captions scenes with mistakes and answers from text alone."""

from __future__ import annotations

import base64
import binascii
import hashlib
import random
import re
from collections.abc import Mapping

from vlaa_lib import prompts
from vlaa_lib.construct.templates import read

from . import rules
from .microworld import narrator
from .microworld.narrator import Rates

TEMPLATES = {
    "teacher-caption": prompts.CAPTION_PROMPT,
    "teacher-distil": prompts.DISTIL_PROMPT,
    "teacher-rewrite": prompts.REWRITE_PROMPT,
    "teacher-verify": prompts.VERIFY_PROMPT,
}


class TeacherError(Exception):
    """A request the teacher does not answer: HTTP status and an OpenAI error code."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class LocalTeacher:
    """Answer the four kinds of request; the model name says which kind it is.

    Deterministic: chance is seeded by the model name, the prompt and the image, so sampling
    settings and the order of requests change nothing.

    Args:
        scenes: scene of each known image, by the sha256 hex digest of its file.
        rates: how often captions err and traces hesitate; None for the narrator's own.
    """

    def __init__(self, scenes: Mapping[str, dict], rates: Rates | None = None) -> None:
        self._scenes, self._rates = scenes, rates or Rates()

    def reply(self, model: str, messages: object) -> tuple[str, str]:
        """Return (prompt text, reply text).

        Raises:
            TeacherError: the request cannot be read or answered.
        """
        template = TEMPLATES.get(model)
        if template is None:
            known = ", ".join(TEMPLATES)
            raise TeacherError(404, "model_not_found", f"no model {model!r} here; use {known}")
        text, image = _read_messages(messages)
        slots = read(template, text)
        if slots is None:
            raise TeacherError(
                422, "unknown_prompt", f"{model} only understands this library's own prompt for it"
            )
        # escapes of half a character are legal JSON
        named = f"{model}\0{text}\0{image}".encode("utf-8", "surrogatepass")
        seed = hashlib.sha256(named).hexdigest()
        rng = random.Random(int(seed, 16))
        if model == "teacher-caption":
            return text, self._caption(image, rng)
        if model == "teacher-distil":
            return text, self._distil(slots["caption"], slots["question"], rng)
        if model == "teacher-rewrite":
            return text, rules.rewrite(slots["input"])
        return text, "Yes" if rules.agrees(slots["gold"], slots["pred"]) else "No"

    def _caption(self, image: str, rng: random.Random) -> str:
        if not image:
            raise TeacherError(400, "missing_image", "a caption needs an image as a data URL")
        if image not in self._scenes:
            raise TeacherError(
                422,
                "unknown_image",
                "the local teacher only knows micro-world images, and this is none of those it "
                "was started with; give records with captions, or the address of a real endpoint",
            )
        return narrator.caption(self._scenes[image], self._rates, rng)

    def _distil(self, caption: str, question: str, rng: random.Random) -> str:
        try:
            return prompts.join_think_answer(*narrator.reason(caption, question, self._rates, rng))
        except narrator.CannotAnswer as error:
            raise TeacherError(422, "cannot_answer", str(error)) from None


def _read_messages(messages: object) -> tuple[str, str]:
    """Return the text of the last user message and the sha256 hex digest of its image, if any.

    Takes what `transformers serve` and vLLM take too: content as text or as a list of parts, an
    image's address as `{"url": ...}` or bare.
    """
    try:
        content = [said["content"] for said in messages if said["role"] == "user"]
        if not content:
            raise TeacherError(400, "invalid_messages", "no message of role 'user' in 'messages'")
        parts = content[-1]
        parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
        # both servers drop other parts, an image among them, without a word
        if odd := sorted({str(part["type"]) for part in parts} - {"text", "image_url"}):
            message = f"unknown content part {odd[0]!r}; use 'text' and 'image_url'"
            raise TeacherError(400, "invalid_messages", message)
        text = "".join(part["text"] for part in parts if part["type"] == "text")
        urls = [part["image_url"] for part in parts if part["type"] == "image_url"]
        urls = [url if isinstance(url, str) else url["url"] for url in urls]
        images = [base64.b64decode(_data_of(url), validate=True) for url in urls]
    except (TypeError, LookupError, AttributeError, binascii.Error) as error:
        raise TeacherError(
            400, "invalid_messages", f"cannot read 'messages': {type(error).__name__}: {error}"
        ) from None
    return text, hashlib.sha256(images[-1]).hexdigest() if images else ""


def _data_of(url: str) -> str:
    head, comma, data = url.partition(",")
    if not comma or not re.fullmatch(r"data:[\w/+.-]*;base64", head):
        raise TeacherError(400, "invalid_image_url", "images must be base64 data URLs")
    return data
