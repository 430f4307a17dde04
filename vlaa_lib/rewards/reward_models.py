"""Reward models that look at the picture: the paper's own, and a judge behind an endpoint."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlaa_lib import Halted, llm
from vlaa_lib.images import ImageError, open_image
from vlaa_lib.prompts import JUDGE_PROMPT
from vlaa_lib.records import Record, clean_image_path

from .open_ended import BETA, Kept, RewardModel

REPOSITORY = "internlm/internlm-xcomposer2d5-7b-reward"  # paper §4 names the model
# ours: the paper names no revision. The last commit but one; the last changes the card alone. A
# branch could change under us, and with it the code that runs here
REVISION = "f110c244d53a74f8cb0523c91d4d714610a2e8f7"
HD_NUM = 9  # the model's card: how many tiles a picture may be cut into
IMAGE_MARK = "<ImageHere>"  # where the remote code puts a picture into a text

# ours: greedy, so that a question asked twice has one answer; a number needs no more tokens
SETTINGS = {"temperature": 0.0, "max_tokens": 16}
_SCORE = re.compile(r"(10(?:\.0{1,4})?|[0-9](?:\.[0-9]{1,4})?)(?: ?/ ?10)?\.?")


def by_name(
    name: str,
    images: str | Path,
    out: str | Path,
    trust_remote_code: bool = False,
    endpoints: str | Path | None = None,
) -> RewardModel | None:
    """Return the model that `grpo.reward_model` names, its scores kept in `out`; None: the default.

    Args:
        trust_remote_code: `xcomposer` runs code that its repository brings.
        endpoints: YAML file with the section `judge`, as `construct --endpoints` reads them.
    """
    file = Path(out) / "scores.sqlite"
    if name == "xcomposer":
        return Kept(XComposerReward(images, trust_remote_code=trust_remote_code), file)
    if name == "judge":
        known = llm.read_endpoints(endpoints, {"judge": llm.Endpoint("judge")})
        return Judge(known["judge"], file, images)
    return None


class _Sighted:
    beta = BETA
    _images: Path

    def problem(self, record: Record) -> str:
        """Say what is wrong with the record's picture; empty when nothing."""
        try:
            open_image(record.image, self._images)
        except ImageError as error:
            return f"open: {error}"
        return ""


# --- the paper's -------------------------------------------------------------------------------


class XComposerReward(_Sighted):
    """Score answers with InternLM-XComposer2.5-Reward (paper §4), 7 billion parameters.

    Half precision, tiles and batched calls as on the model's card, whose own code is fetched and
    run: written for transformers 4.33, it takes the weights of its vision tower from a second
    repository, at no fixed revision.

    Args:
        trust_remote_code: must be True: the caller agrees to run code from the repository.
        path: repository, or a folder with the same files; a folder has no revision.
        dtype: of weights and autocast, by torch's name; float32 does without autocast.
        batch: answers a call of the model.
    """

    def __init__(
        self,
        images: str | Path,
        *,
        trust_remote_code: bool = False,
        path: str | Path = REPOSITORY,
        dtype: str = "float16",
        batch: int = 4,
    ) -> None:
        if trust_remote_code is not True:
            raise Halted(
                f"{path} brings Python code of its own, which would run here with all your rights; "
                "read it, then pass trust_remote_code=True, or score with a judge instead"
            )
        import torch

        self._images, self._batch, self._dtype = Path(images), batch, getattr(torch, dtype)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        revision = None if Path(path).is_dir() else REVISION
        self.name = f"{path}@{revision or 'folder'} {dtype} hd_num={HD_NUM}"
        self._model = _load(str(path), revision, self._dtype)
        tokenizer = self._model.tokenizer
        marks = {IMAGE_MARK, *tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
        # broken up in questions and answers, which cannot forge turns or pictures then
        self._marks = re.compile("|".join(re.escape(mark) for mark in marks if len(mark) > 1))

    def score(self, records: Sequence[Record], answers: Sequence[str]) -> list[float | None]:
        import torch

        rows = list(zip(records, answers, strict=True))
        scores: list[float | None] = []
        # paper, appendix C.1: it is on the GPU only while it scores
        self._model.to(self._device)
        try:
            for start in range(0, len(rows), self._batch):
                scores += self._score_batch(rows[start : start + self._batch])
        finally:
            self._model.to("cpu")
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
        return scores

    def _score_batch(self, rows: list[tuple[Record, str]]) -> list[float]:
        import torch

        def plain(text: str) -> str:
            return self._marks.sub(lambda mark: f"{mark[0][0]} {mark[0][1:]}", text)

        chats = [
            [{"role": "user", "content": plain(record.question)},
             {"role": "assistant", "content": plain(answer)}]
            for record, answer in rows
        ]  # fmt: skip
        pictures = [[str(self._images / clean_image_path(record.image))] for record, _ in rows]
        half = self._dtype if self._dtype != torch.float32 else None
        try:
            with torch.inference_mode(), torch.autocast(self._device.type, half, half is not None):
                found = self._model.get_scores(chats, pictures, hd_num=HD_NUM)
        except Exception as error:  # somebody else's code raises whatever it likes
            ids = ", ".join(record.id for record, _ in rows)
            raise Halted(
                f"{self.name} failed on records {ids} ({error}); where memory ran out, lower batch"
            ) from error
        return [float(score) for score in found]


def _load(path: str, revision: str | None, dtype: Any) -> Any:
    """Load model and tokenizer as the model's card does, but on the CPU."""
    from transformers import AutoModel, AutoTokenizer, __version__

    from vlaa_lib import models

    where = {"revision": revision, "trust_remote_code": True}
    # the remote code's own version of the library knows the old name only
    name = "torch_dtype" if __version__.startswith("4.") else "dtype"
    try:  # without `device_map`: with it, the code meets empty weights (upstream issue 473)
        told = {name: dtype, "output_loading_info": True}
        model, found = AutoModel.from_pretrained(path, **told, **where)
        models.check_keys(path, found["missing_keys"], found["unexpected_keys"])
        model.tokenizer = AutoTokenizer.from_pretrained(path, **where)
    except Exception as error:  # download, remote code, weights: anything can be wrong
        raise Halted(
            f"{path} does not load ({type(error).__name__}: {error}); its code was written for "
            "transformers 4.33 and timm 0.4: use an environment with these, or a judge"
        ) from error
    if not hasattr(model, "get_scores"):
        raise Halted(f"{path}: the model has no get_scores; it is no such reward model")
    return model.eval().requires_grad_(False)


# --- a judge -----------------------------------------------------------------------------------


def read_score(text: str) -> float | None:
    """Read a judge's reply: one number from 0 to 10 and nothing else, or None.

    >>> read_score(" 7.5/10. "), read_score("10"), read_score("11"), read_score("7 or 8")
    (7.5, 10.0, None, None)
    """
    match = _SCORE.fullmatch(text.strip())
    return float(match[1]) if match else None


class Judge(_Sighted):
    """Ask a vision model to grade each answer (ours; the paper uses a trained reward model).

    It sees picture, question and answer, as the paper's does, and not the reference.

    Args:
        endpoint: `settings` are added to greedy decoding and 16 new tokens; a model that thinks
            first needs more.
        ledger: file that keeps the replies; an equal question is answered from it at no cost.
        limits: budgets are of the judge's life; calls in flight are finished and can pass them.
    """

    def __init__(
        self,
        endpoint: llm.Endpoint,
        ledger: str | Path,
        images: str | Path,
        limits: llm.Limits | None = None,
    ) -> None:
        settings = SETTINGS | dict(endpoint.settings)
        self._images = Path(images)
        self._given = replace(endpoint, settings=settings), ledger, images, limits, llm.Spent()
        # the digest stands for settings and wording
        digest = llm.call_key("judge", endpoint.model, settings, JUDGE_PROMPT)[:8]
        self.name = f"judge {endpoint.model} {digest}"
        self.unusable: Counter[str] = Counter()  # reason -> answers without a score in its life

    def score(self, records: Sequence[Record], answers: Sequence[str]) -> list[float | None]:
        requests = [
            llm.Request("judge", llm.fill(JUDGE_PROMPT, question=llm.quoted(r.question),
                                          pred=llm.quoted(answer)), r.image)
            for r, answer in zip(records, answers, strict=True)
        ]  # fmt: skip
        texts = self.texts(requests)
        scores = [None if text is None else read_score(text) for text in texts]
        if lost := scores.count(None) - texts.count(None):
            self.unusable["no number from 0 to 10"] += lost
        return scores

    def texts(self, requests: list[llm.Request]) -> list[str | None]:
        """Return the text of each reply; None where it is unusable, which is counted."""
        return llm.texts_of(self.replies(requests), self.unusable)

    def replies(self, requests: list[llm.Request]) -> list[llm.Reply | llm.CallFailed]:
        """Return the reply to each request of the step `judge`, or why there is none."""
        return llm.ask_all(requests, *self._given)
