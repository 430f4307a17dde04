"""The small SFT subsets: the most surprising traces, and traces with an aha word (paper §2).

How surprised a policy is by a trace is its perplexity, teacher-forced: `score`, then `select`.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from vlaa_lib import VlaaError, folders, models, prompts
from vlaa_lib.evaluate.generate import by_length, fingerprint
from vlaa_lib.images import ImageError, fit_image, open_image
from vlaa_lib.progress import progress_bar
from vlaa_lib.records import Loaded, Record, RecordError, Reject
from vlaa_lib.train import data

if TYPE_CHECKING:
    from vlaa_lib.models import Policy

Row = dict[str, Any]
Scores = dict[str, Row]  # record id -> its row in a score file

# ours: three answers of 4,000 tokens with pictures; some 10 GiB beside the weights of a 3B policy
BATCH_TOKENS = 16_384
WINDOW = 128  # ours: records sorted by length together; about 1 GB of pixels at 262,144 px each
HEAD_TOKENS = 1024  # ours: 0.6 GB of float32 logits at 152 k entries, whatever the batch

_PADDING = {"input_ids": 0, "attention_mask": 0, "labels": -100, "mm_token_type_ids": 0}

# --- scoring --------------------------------------------------------------------------------------


def score(
    policy: Policy,
    records: list[Record],
    images: str | Path,
    out: str | Path,
    batch_tokens: int = BATCH_TOKENS,
    shard: tuple[int, int] = (1, 1),
) -> Scores:
    """Score the trace of each record under a policy, given image and prompt (paper §2).

    Resumable. Rows hold `num_tokens`, `mean_nll` (nats a token) and `perplexity`, its exponential,
    over the tokens that SFT trains on: the trace and the end of its turn. A record that cannot be
    scored gets a row with the `problem`; delete that line to try it again.

    Args:
        batch_tokens: bound of a forward pass, padding included; a longer record goes alone.
        shard: (i, n): every n-th record from the i-th (1 to n) on, into a file of its own.
    Returns:
        All scores found in `out`, those of other shards too.
    """
    index, count = shard
    # a name is for people: one checkpoint may lie in two places
    folders.claim(out, fingerprint(policy), names=["policy"])
    done = load(out, records)
    path = Path(out) / ("scores.jsonl" if count == 1 else f"scores-{index}-of-{count}.jsonl")
    folders.whole_lines(path, cut=True)
    todo = [record for record in records[index - 1 :: count] if record.id not in done]
    policy.model.eval()
    start, tokens = time.monotonic(), 0
    with progress_bar(total=len(todo), desc=f"perplexity {index}/{count}", unit="record") as bar:
        for rows, batch_size_tokens in _scored(policy, todo, images, batch_tokens):
            for row in rows:
                folders.append_line(path, row)
            tokens += batch_size_tokens
            bar.set_postfix_str(f"{tokens / (time.monotonic() - start):,.0f} tokens/s")
            bar.update(len(rows))
    return load(out, records)


def load(folder: str | Path, records: Iterable[Record]) -> Scores:
    """Read the scores of the given records from every `scores*.jsonl` of a folder."""
    keys, scores = {record.id: _key(record) for record in records}, {}
    for path in sorted(Path(folder).glob("scores*.jsonl")):
        for number, row in enumerate(folders.whole_lines(path), 1):
            if not {"id", "key"} <= row.keys() or not {"perplexity", "problem"} & row.keys():
                raise RecordError(f"{path}:{number}: not a score; delete this line")
            if keys.get(row["id"], row["key"]) != row["key"]:
                raise RecordError(
                    f"{path}:{number}: {row['id']!r} was scored with another question, image or "
                    "answer; name another folder, or delete this one"
                )
            if row["id"] in keys:
                scores[row["id"]] = row
    return scores


def _key(record: Record) -> str:
    """Name what was scored: the same id with another answer is another row."""
    scored = [record.question, record.reward, record.image, record.answer]
    return hashlib.sha256(json.dumps(scored).encode()).hexdigest()[:16]


class _Encoded:
    """Records as model inputs of one row each, labels as in SFT, or why there are none."""

    def __init__(self, policy: Policy, records: list[Record], images: str | Path) -> None:
        from trl import apply_chat_template
        from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

        said = {"prompt": prompts.messages("?", "open")}
        said["completion"] = [{"role": "assistant", "content": "!"}]
        if not apply_chat_template(said, policy.processor)["completion"]:
            raise VlaaError(
                f"the chat template of {policy.path} leaves out what the assistant says, so there "
                "is nothing to score; take an instruct model, as the paper does"
            )
        self.records, self.images = records, images
        collator = DataCollatorForVisionLanguageModeling
        self.collate = collator(policy.processor, completion_only_loss=True)
        self.max_pixels = policy.processor.image_processor.size["longest_edge"]
        self.processor = policy.processor

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Record, dict[str, Any] | str]:
        record = self.records[index]
        try:
            if token := models.spelt(self.processor, record.question + record.answer):
                raise RecordError(f"the text spells the special token {token}; delete it")
            picture = fit_image(open_image(record.image, self.images), max_pixels=self.max_pixels)
            inputs = self.collate([data.row(record, picture, with_trace=True)])
        except (RecordError, ImageError) as error:
            return record, str(error)
        # as arrays: between processes each tensor would hold a file open
        return record, {name: tensor.numpy() for name, tensor in inputs.items()}


def _scored(
    policy: Policy, records: list[Record], images: str | Path, batch_tokens: int
) -> Iterator[tuple[list[Row], int]]:
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
        yield [{"id": r.id, "key": _key(r), "problem": said} for r, said in bad], 0
        good = [(record, inputs) for record, inputs in window if not isinstance(inputs, str)]
        lengths = [inputs["input_ids"].size for _, inputs in good]
        for batch in by_length(lengths, tokens=batch_tokens, longest_first=True):
            inputs = _join([good[i][1] for i in batch])
            try:
                losses = mean_nll(policy.model, inputs)
            except torch.OutOfMemoryError as error:
                size = tuple(inputs["input_ids"].shape)
                raise VlaaError(f"a batch of {size} does not fit; lower batch_tokens") from error
            counts = (inputs["labels"] != -100).sum(1)
            rows = []
            for i, nll, count in zip(batch, losses.tolist(), counts.tolist(), strict=True):
                row = {"id": good[i][0].id, "key": _key(good[i][0])}
                if nll < 700:  # the exponential of 710 is beyond a float; NaN too
                    row |= {"num_tokens": count, "mean_nll": nll, "perplexity": math.exp(nll)}
                else:
                    row["problem"] = f"its mean negative log-likelihood is {nll}"
                rows.append(row)
            yield rows, sum(lengths[i] for i in batch)


def _join(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pad the token rows of single records on the right [B, T]; put patches after each other."""
    joined = {}
    for name in items[0]:
        parts = [torch.from_numpy(item[name]) for item in items]
        if name in _PADDING:
            joined[name] = pad_sequence([p[0] for p in parts], True, _PADDING[name])
        else:
            joined[name] = torch.cat(parts)
    return joined


@torch.inference_mode()
def mean_nll(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the mean negative log-likelihood [B] (nats) of the tokens whose label is not -100."""
    inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    targets = inputs.pop("labels")[:, 1:]  # [B, T-1]: position t is told from what stands before
    hidden = model.model(**inputs, use_cache=False).last_hidden_state[:, :-1]  # [B, T-1, D]
    told = targets != -100
    # the picture and the prompt are most of a row, and the logits of a whole batch more than the
    # model: so logits only where a label stands, a thousand positions at a time
    head = model.get_output_embeddings()
    pieces = zip(hidden[told].split(HEAD_TOKENS), targets[told].split(HEAD_TOKENS), strict=True)
    losses = torch.cat([cross_entropy(head(h).float(), t, reduction="none") for h, t in pieces])
    rows = told.nonzero()[:, 0]
    sums = torch.zeros(len(told), dtype=torch.float64, device=losses.device)
    return sums.index_add_(0, rows, losses.double()) / told.sum(1)


# --- choosing -------------------------------------------------------------------------------------


def average(
    records: list[Record], scores: Mapping[str, Scores]
) -> tuple[list[Row], list[Reject]]:
    """Average the perplexity of each record over policies (paper §2), arithmetically.

    A row has id, source, one column a policy, and their mean as `perplexity`; a record that a
    policy could not score is a reject.
    """
    if not scores:
        raise RecordError("no policy has scored the records; name at least one")
    lacking = {name: sum(r.id not in rows for r in records) for name, rows in scores.items()}
    if said := ", ".join(f"{n:,} from {name}" for name, n in lacking.items() if n):
        raise RecordError(
            f"of {len(records):,} records some have no score: {said}; "
            "let every shard finish, or score them now"
        )
    table, rejects = [], []
    for record in records:
        mine = {name: rows[record.id] for name, rows in scores.items()}
        if bad := [f"{name}: {row['problem']}" for name, row in mine.items() if "problem" in row]:
            rejects.append(Reject("", None, record.id, "; ".join(bad)))
            continue
        values = {name: row["perplexity"] for name, row in mine.items()}
        mean = sum(values.values()) / len(values)
        table.append({"id": record.id, "source": record.source, **values, "perplexity": mean})
    return table, rejects


def select(records: list[Record], scores: Mapping[str, Scores], top_k: int) -> Loaded:
    """Keep the `top_k` records of the highest perplexity, averaged over policies (paper §2)."""
    table, rejects = average(records, scores)
    _check_enough(len(table), top_k, "records have a perplexity")
    # ties go to the lower id, so that smaller subsets lie inside larger ones
    ranked = sorted(table, key=lambda row: (-row["perplexity"], row["id"]))
    kept = {row["id"] for row in ranked[:top_k]}
    return Loaded([record for record in records if record.id in kept], rejects)


def aha(records: list[Record], count: int, seed: int = 0) -> list[Record]:
    """Draw `count` records whose trace has an aha word (paper §2, aha-55K), in their order."""
    found = [i for i, record in enumerate(records) if prompts.has_aha(record.answer)]
    # the split sends such traces to the RL side: a plain sft.jsonl has none
    _check_enough(len(found), count, "records have an aha word in their trace; see rl.jsonl")
    chosen = sorted(random.Random(seed).sample(found, count))
    return [records[i] for i in chosen]


def _check_enough(found: int, asked: int, what: str) -> None:
    if not 1 <= asked <= found:
        raise RecordError(f"asked for {asked:,}, but {found:,} {what}; ask for 1 to {found:,}")
