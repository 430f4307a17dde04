"""Records as the dataset that TRL's trainers read, and what is checked of it before the first step.

A row is prompt and image, for SFT a completion, and the record's columns (`Record.to_columns`):
TRL hands every column that it does not know to the reward functions.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlaa_lib import VlaaError, folders, prompts
from vlaa_lib.escape import say
from vlaa_lib.images import ImageError, fit_image, open_image
from vlaa_lib.models import ImageProcessor, Policy, spelt
from vlaa_lib.progress import progress_bar
from vlaa_lib.records import Record, RecordError, Reject

if TYPE_CHECKING:
    from datasets import Dataset

PROBED = 8  # ours: rows put through the whole processor, from the smallest picture to the largest
Row = dict[str, Any]


def dataset(
    records: list[Record],
    policy: Policy,
    images: str | Path,
    out: str | Path,
    max_pixels: int,
    max_tokens: int,
    with_trace: bool,
) -> Dataset:
    """Return the records that fit the policy as a dataset, and name those that do not."""
    made, rejects = rows(records, images, Path(out) / "images", with_trace, max_pixels=max_pixels)
    made, too_long = within(made, policy.processor, max_tokens)
    for reject in (*rejects, *too_long):
        say(f"left out: {reject}")
    if not made:
        raise RecordError(f"none of the {len(records)} records can be trained on; see above")
    if len(made) < len(records):
        say(f"training on {len(made)} of {len(records)} records; the others are named above")
    preflight(made, policy.processor, policy.model)
    return table(made)


def rows(
    records: list[Record], images: str | Path, cache: str | Path, with_trace: bool, **budget: int
) -> tuple[list[Row], list[Reject]]:
    """Return a row for each record with a usable image and, for SFT, a trace; and the rejects."""
    made, rejects = [], []
    for record in progress_bar(records, desc="images", unit="record", leave=False, delay=2):
        try:
            image = fitted_image(record, images, cache, **budget)
            made.append(row(record, image, with_trace))
        except (RecordError, ImageError) as error:
            rejects.append(Reject("", None, record.id, str(error)))
    return made, rejects


def row(record: Record, image: Any, with_trace: bool) -> Row:
    """Build one row; `image` is a path or a picture, as TRL takes both."""
    made = {"prompt": prompts.messages(record.question, record.reward), "image": image}
    if with_trace:
        if prompts.split_think_answer(record.answer).problem:
            raise RecordError("no trace in 'answer'; run `construct` on these records first")
        made["completion"] = [{"role": "assistant", "content": record.answer}]
    return made | record.to_columns()


def table(rows: list[Row]) -> Dataset:
    """Return rows as the trainers' table; each `meta` keeps its own keys, whatever others have."""
    from datasets import Dataset, Features, Json

    plain = [{key: value for key, value in row.items() if key != "meta"} for row in rows]
    features = Features({**Dataset.from_list(plain).features, "meta": Json()})
    return Dataset.from_list(rows, features=features)


def fitted_image(record: Record, images: str | Path, cache: str | Path, **budget: int) -> str:
    """Return the path of an image that every stage may open: checked, and fitted where it must be.

    Trainers get paths, not pixels: TRL would otherwise copy and pickle each picture G times.
    """
    from PIL import Image

    path = Path(images) / record.image
    image = open_image(record.image, images)
    fitted = fit_image(image, **budget)
    with Image.open(path) as stored:  # an EXIF rotation makes it another size than the opened one
        is_same = fitted is image and image.size == stored.size
    if is_same:
        return str(path.resolve())
    target = Path(cache) / Path(record.image).with_suffix(".png")
    # each process of a launch fits the same image, and none may read another's half-written one
    with folders.staged(target) as draft:
        fitted.save(draft, "PNG")
    return str(target.resolve())


def count_tokens(row: Row, processor: ImageProcessor) -> int:
    """Count a row's tokens: those of its prompt, its picture and its completion."""
    text = processor.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
    completion = row["completion"][0]["content"] if "completion" in row else ""
    encoded = [processor.tokenizer.encode(t, add_special_tokens=False) for t in (text, completion)]
    return sum(map(len, encoded)) + image_tokens(row, processor)


def image_tokens(row: Row, processor: ImageProcessor) -> int:
    """Count the tokens of a row's picture from the size in its file."""
    from PIL import Image

    with Image.open(row["image"]) as image:
        width, height = image.size
    patches = processor.image_processor.get_number_of_image_patches(height, width)
    return patches // processor.image_processor.merge_size**2


def within(
    rows: list[Row], processor: ImageProcessor, limit: int
) -> tuple[list[Row], list[Reject]]:
    """Split rows into those of at most `limit` tokens, image included, and rejects; none is cut.

    A cut prompt would lose part of its picture ("image features and image tokens do not match"),
    a cut trace its answer; a text that spells an image token asks for features that are not there.
    """
    kept, rejects = [], []
    for row in progress_bar(rows, desc="lengths", unit="record", leave=False, delay=2):
        said = (row["question"], *(turn["content"] for turn in row.get("completion", ())))
        token = spelt(processor, "\n".join(said))
        if not token and (tokens := count_tokens(row, processor)) <= limit:
            kept.append(row)
        else:
            reason = f"its text spells the special token {token}; delete it"
            if not token:
                reason = f"{tokens} tokens with its image, the limit is {limit}"
            rejects.append(Reject("", None, row["id"], reason))
    return kept, rejects


def preflight(rows: list[Row], processor: ImageProcessor, model: Any) -> None:
    """Refuse padding on the right, and image tokens that do not match the features of pictures.

    The smallest, the largest and a few other pictures are put through the whole processor.
    """
    from PIL import Image

    if processor.tokenizer.padding_side != "left":
        raise VlaaError("the tokenizer pads on the right; load it with models.load_processor")
    if processor.image_token_id != model.config.image_token_id:
        raise VlaaError(
            f"the processor's image token is {processor.image_token_id}, the model's "
            f"{model.config.image_token_id}: they come from different checkpoints"
        )
    content = [{"type": "image"}, {"type": "text", "text": "?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    ordered = sorted(rows, key=lambda row: image_tokens(row, processor))
    step = max(1, math.ceil(len(ordered) / PROBED))
    for row in [*ordered[::step], ordered[-1]]:
        with Image.open(row["image"]) as image:
            made = processor(images=[image.convert("RGB")], text=[text], return_tensors="pt")
        tokens = int((made["input_ids"] == processor.image_token_id).sum())
        # one feature for each square of merged patches
        features = int(made["image_grid_thw"].prod()) // processor.image_processor.merge_size**2
        if tokens != features or tokens != image_tokens(row, processor):
            raise VlaaError(
                f"record {row['id']}: {tokens} image tokens for {features} features; the chat "
                "template or the image processor is not Qwen2-VL's"
            )
