"""How surprised a policy is by each trace: the scores behind the small SFT subsets (paper §2)."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from vlaa_lib.folders import write_text

from . import prompts
from .images import ImageError, fit_image, open_image
from .models import Policy
from .progress import progress_bar
from .records import Record, RecordError
from .train import data

Scores = dict[str, dict[str, Any]]  # record id -> its row in a score file

# ours: three answers of 4,000 tokens with pictures; some 10 GiB beside the weights of a 3B policy
BATCH_TOKENS = 16_384
WINDOW = 128  # ours: records sorted by length together; about 1 GB of pixels at 262,144 px each
HEAD_TOKENS = 1024  # ours: 0.6 GB of float32 logits at 152 k entries, whatever the batch

_PADDING = {"input_ids": 0, "attention_mask": 0, "labels": -100, "mm_token_type_ids": 0}


def score(
    policy: Policy,
    records: list[Record],
    images: str | Path,
    out: str | Path,
    batch_tokens: int = BATCH_TOKENS,
    shard: tuple[int, int] = (1, 1),
) -> Scores:
    """Score the trace of each record under a policy, given image and prompt (paper §2).

    Rows are appended to a score file in `out`, so that a killed run goes on where it stopped. Rows
    hold `num_tokens`, `mean_nll` (nats a token) and `perplexity`, its exponential, over the tokens
    that SFT trains on: the trace and the end of its turn. A record that cannot be scored gets a row
    with the `problem`; delete that line to try it again.

    Args:
        out: folder of this policy's scores, shared by all shards.
        batch_tokens: bound of a forward pass, padding included; a longer record goes alone.
        shard: (i, n): every n-th record from the i-th (1 to n) on, into a file of its own.
    Returns:
        All scores found in `out`, those of other shards too.
    Raises:
        RecordError: `out` holds scores of another policy or of other records.
    """
    index, count = shard
    if not 1 <= index <= count:
        raise ValueError(f"shard {index}/{count}: the first number goes from 1 to {count}")
    path = Path(out) / ("scores.jsonl" if count == 1 else f"scores-{index}-of-{count}.jsonl")
    header = fingerprint(policy)
    done = load(out, records, header)
    _make_ready(path, header)
    todo = [record for record in records[index - 1 :: count] if record.id not in done]
    policy.model.eval()
    with path.open("a", encoding="utf-8") as file, progress_bar(
        total=len(todo), desc=f"perplexity {index}/{count}", unit="record"
    ) as bar:
        start, tokens = time.monotonic(), 0
        for rows, batch_size_tokens in _scored(policy, todo, images, batch_tokens):
            file.write("".join(json.dumps(row) + "\n" for row in rows))
            file.flush()
            tokens += batch_size_tokens
            bar.set_postfix_str(f"{tokens / (time.monotonic() - start):,.0f} tokens/s")
            bar.update(len(rows))
    return load(out, records, header)


def load(
    folder: str | Path, records: Iterable[Record], header: dict[str, Any] | None = None
) -> Scores:
    """Read the scores of the given records from every `scores*.jsonl` of a folder.

    Args:
        header: what the scores must have been made with; by default all files need only agree.
    Raises:
        RecordError: a broken line, or scores of another policy, other settings or other records.
    """
    keys, scores = {record.id: _key(record) for record in records}, {}
    for path in sorted(Path(folder).glob("scores*.jsonl")):
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        for number, line in enumerate(lines[:-1], 1):  # the last is empty, or cut off by a kill
            row, place = _read_row(line), f"{path}:{number}"
            if row is None or (number > 1 and not {"id", "key"} <= row.keys()):
                raise RecordError(f"{place}: not a score; delete this line")
            if number == 1:
                header = header or row
                _check_header(row, header, place)
            elif row["id"] in keys:
                if row["key"] != keys[row["id"]]:
                    raise RecordError(
                        f"{place}: {row['id']!r} was scored with another question, image or "
                        "answer; name another folder, or delete this one"
                    )
                scores[row["id"]] = row
    return scores


def _read_row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _check_header(found: dict[str, Any], wanted: dict[str, Any], place: str) -> None:
    # a name is for people: one checkpoint may lie in two places
    other = [k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k)]
    if other := sorted(set(other) - {"policy"}):
        said = ", ".join(f"{k} {found.get(k)} instead of {wanted.get(k)}" for k in other)
        raise RecordError(
            f"{place}: scores of {found.get('policy')}, made with {said}; name another folder, "
            "or delete this one"
        )


def _make_ready(path: Path, header: dict[str, Any]) -> None:
    """Start a score file with its header, or cut off the half line that a killed run left."""
    text = path.read_bytes() if path.is_file() else b""
    whole = text.rfind(b"\n") + 1
    if not whole:
        write_text(path, json.dumps(header) + "\n")
    elif whole < len(text):
        with path.open("r+b") as file:
            file.truncate(whole)


def fingerprint(policy: Policy) -> dict[str, Any]:
    """Say what the numbers depend on: weights, precision, wording, pixels."""
    weights = hashlib.sha256()
    for name, tensor in policy.model.state_dict().items():
        # the beginning of each tensor: training moves it, and 3B parameters take no time
        some = tensor.detach().reshape(-1)[:4096].cpu().contiguous()
        weights.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        weights.update(some.view(torch.uint8).numpy().tobytes())
    wording = [prompts.SYSTEM_PROMPT, prompts.TASK_INSTRUCTIONS, policy.processor.chat_template]
    size = policy.processor.image_processor.size
    return {
        "policy": policy.path,
        "weights": weights.hexdigest()[:16],
        "dtype": str(policy.model.dtype).removeprefix("torch."),
        "wording": hashlib.sha256(json.dumps(wording, sort_keys=True).encode()).hexdigest()[:16],
        "min_pixels": size["shortest_edge"],
        "max_pixels": size["longest_edge"],
    }


def _key(record: Record) -> str:
    """Name what was scored: the same id with another answer is another row."""
    scored = [record.question, record.reward, record.image, record.answer]
    return hashlib.sha256(json.dumps(scored).encode()).hexdigest()[:16]


class _Encoded:
    """Records as model inputs of one row each, or the reason why there are none.

    TRL's collator makes them from the rows of SFT, so that the labels are those of SFT.

    Raises:
        ValueError: the policy's chat template shows no reply, as that of a base model may.
    """

    def __init__(self, policy: Policy, records: list[Record], images: str | Path) -> None:
        from trl import apply_chat_template
        from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

        said = {"prompt": prompts.messages("?", "open")}
        said["completion"] = [{"role": "assistant", "content": "!"}]
        if not apply_chat_template(said, policy.processor)["completion"]:
            raise ValueError(
                f"the chat template of {policy.path} leaves out what the assistant says, so there "
                "is nothing to score; take an instruct model, as the paper does"
            )
        self.records, self.images = records, images
        self.collate = DataCollatorForVisionLanguageModeling(
            policy.processor, completion_only_loss=True
        )
        self.max_pixels = policy.processor.image_processor.size["longest_edge"]
        added = policy.processor.tokenizer.added_tokens_decoder.values()
        self.special = [token.content for token in added if token.special]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Record, dict[str, Any] | str]:
        record = self.records[index]
        try:
            # a trace that spells an image token would ask for features that are not there
            if spelt := [s for s in self.special if s in record.question + record.answer]:
                raise RecordError(f"the text spells the special token {spelt[0]}; delete it")
            picture = fit_image(open_image(record.image, self.images), max_pixels=self.max_pixels)
            inputs = self.collate([data.row(record, picture, with_trace=True)])
        except (RecordError, ImageError) as error:
            return record, str(error)
        # as arrays: between processes each tensor would hold a file open
        return record, {name: tensor.numpy() for name, tensor in inputs.items()}


def _scored(
    policy: Policy, records: list[Record], images: str | Path, batch_tokens: int
) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """Yield rows batch by batch, with the number of tokens that the policy read."""
    loader = torch.utils.data.DataLoader(
        _Encoded(policy, records, images),
        batch_size=WINDOW,
        collate_fn=list,
        # pictures are decoded beside the GPU; on a CPU both would want the same cores
        num_workers=4 if policy.model.device.type == "cuda" else 0,
    )
    for window in loader:
        bad = [(record, said) for record, said in window if isinstance(said, str)]
        if bad:
            yield [_row(record, problem=problem) for record, problem in bad], 0
        good = [(record, inputs) for record, inputs in window if not isinstance(inputs, str)]
        lengths = [inputs["input_ids"].size for _, inputs in good]
        for batch in batches(lengths, batch_tokens):
            inputs = _join([good[i][1] for i in batch])
            try:
                losses = mean_nll(policy.model, inputs)
            except torch.OutOfMemoryError as error:
                size = tuple(inputs["input_ids"].shape)
                raise ValueError(f"a batch of {size} does not fit; lower batch_tokens") from error
            counts = (inputs["labels"] != -100).sum(1)
            numbers = zip(losses.tolist(), counts.tolist(), strict=True)
            rows = [_row(good[i][0], *pair) for i, pair in zip(batch, numbers, strict=True)]
            yield rows, sum(lengths[i] for i in batch)


def _row(
    record: Record, mean_nll: float = math.nan, num_tokens: int = 0, problem: str = ""
) -> dict[str, Any]:
    row = {"id": record.id, "key": _key(record)}
    if not problem and not mean_nll < 700:  # the exponential of 710 is beyond a float; NaN too
        problem = f"its mean negative log-likelihood is {mean_nll}"
    if problem:
        return row | {"problem": problem}
    numbers = {"num_tokens": num_tokens, "mean_nll": mean_nll}
    return row | numbers | {"perplexity": math.exp(mean_nll)}


def batches(lengths: list[int], batch_tokens: int) -> Iterator[list[int]]:
    """Group positions, longest first, so that rows times longest stays within `batch_tokens`.

    Longest first: what does not fit the memory fails at once, not in the last hour.

    >>> list(batches([3, 9, 4, 4], batch_tokens=8))
    [[1], [2, 3], [0]]
    """
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _join(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pad the token rows of single records on the right [B, T]; put patches after each other."""
    joined = {}
    for name in items[0]:
        parts = [torch.from_numpy(item[name]) for item in items]
        joined[name] = (
            pad_sequence([p[0] for p in parts], batch_first=True, padding_value=_PADDING[name])
            if name in _PADDING
            else torch.cat(parts)
        )
    return joined


@torch.inference_mode()
def mean_nll(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the mean negative log-likelihood [B] (nats) of the tokens whose label is not -100.

    Logits are made where a label stands, a thousand positions at a time: the picture and the
    prompt are most of a row, and the logits of a whole batch more than the model.
    """
    inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    targets = inputs.pop("labels")[:, 1:]  # [B, T-1]: position t is told from what stands before
    hidden = model.model(**inputs, use_cache=False).last_hidden_state[:, :-1]  # [B, T-1, D]
    told = targets != -100
    head = model.get_output_embeddings()
    pieces = zip(hidden[told].split(HEAD_TOKENS), targets[told].split(HEAD_TOKENS), strict=True)
    losses = torch.cat([cross_entropy(head(h).float(), t, reduction="none") for h, t in pieces])
    rows = told.nonzero()[:, 0]
    sums = torch.zeros(len(told), dtype=torch.float64, device=losses.device)
    return sums.index_add_(0, rows, losses.double()) / told.sum(1)
