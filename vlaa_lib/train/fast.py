"""Fast paths over TRL's GRPO trainer: what it does G times is done once, at the same numbers.

The dataset carries paths, so no process ever pickles pixels. In a sampling round each picture is
opened and cut into patches once, TRL's tensors carry its number instead of its pixels, and the
frozen tower answers a number with features that it computed once. `tests/test_fast.py` holds every
path to the stock trainer.

Shapes: B rows of a pass, P columns of left-padded prompts, T of completions.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vlaa_lib.escape import say
from vlaa_lib.models import whole_patches
from vlaa_lib.profiles import FAST as PATHS

from .decoding import decode
from .rounds import Pictures, Window, alike, distinct, joined, of_rows, prompts_of, replaced

IMAGES, VISION, PREFILL, ENDED, PADDING, LENGTHS = PATHS
CHUNK = 16  # ours: rows of one pass on a CPU, where larger ones gain nothing
# loss types that are a sum over rows, or a mean over equally many; `bnpo` divides by the tokens of
# each micro-batch
ORDERLESS = ("grpo", "dr_grpo", "dapo", "cispo", "sapo", "vespo", "luspo")
# of `grpo.extra`: what `tests/test_fast.py` compares with the stock trainer
COMPARED = {"delta", "entropy_coef", "epsilon_high", "mask_truncated_completions",
            "top_entropy_quantile"}  # fmt: skip


@contextlib.contextmanager
def prefilled_once(model: Any, first: list[int], back: list[int]) -> Iterator[None]:
    """Let `model.generate` run each distinct prompt through the model once, then copy its cache.

    Args:
        first: the row of each distinct prompt.
        back: for each row, which of the distinct prompts it is.
    """
    forward = model.forward

    def some(name: str, value: Any) -> Any:
        if name == "mm_encoder_outputs":
            for output in value.values():  # one picture a row; generate asks for no more of it
                output.pooler_output = [output.pooler_output[row] for row in first]
        elif isinstance(value, Tensor) and value.ndim > 1:  # M-RoPE's positions: [3 or 4, B, P]
            return value[:, first] if name == "position_ids" and value.ndim == 3 else value[first]
        return value

    @functools.wraps(forward)  # generate reads its signature
    def prefill(**inputs: Any) -> Any:
        model.forward = forward  # the steps that follow are no prefill
        output = forward(**{name: some(name, value) for name, value in inputs.items()})
        output.past_key_values.batch_select_indices(torch.tensor(back, device=model.device))
        output.logits = output.logits[back]
        return output

    with replaced(model, "forward", prefill):
        yield


def collapsed(ids: Sequence[int], token: int) -> list[int]:
    """Return ids in which each run of a token is one.

    >>> collapsed([1, 7, 7, 2, 7], 7)
    [1, 7, 2, 7]
    """
    return [one for at, one in enumerate(ids) if one != token or not at or ids[at - 1] != token]


def narrow(
    model: Callable[..., Any], backbone: torch.nn.Module, prompt: int, share: bool
) -> Callable[..., Any]:
    """Wrap a model with TRL's fused head so that a pass has no more positions than it needs.

    Columns that all rows pad are left out, prompts get no head (on a CPU TRL's scores pictures as
    well), and with `share` each distinct prompt runs once, which needs pictures known by their
    number. What comes back is as wide as what was asked for.
    """

    def forward(input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **inputs: Any) -> Any:
        used = attention_mask.any(0).nonzero()  # columns, of [B, P + T]
        start, end = int(used[0]), int(used[-1]) + 1
        if (kinds := inputs.get("mm_token_type_ids")) is not None:
            inputs["mm_token_type_ids"] = kinds[:, start:end]
        body = functools.partial(_shared, backbone) if share else _whole
        body = functools.partial(body, backbone.forward, prompt - start)
        with replaced(backbone, "forward", body):
            output = model(
                input_ids=input_ids[:, start:end],
                attention_mask=attention_mask[:, start:end],
                labels=labels[:, prompt - 1 : end],
                **inputs,
            )
        for name in ("log_probs", "entropy"):  # [B, end - prompt] to [B, P + T - 1]
            if (found := getattr(output, name)) is not None:
                wide = functional.pad(found, (prompt - 1, input_ids.shape[1] - end))
                setattr(output, name, wide)
        return output

    return forward


def _whole(own: Callable[..., Any], prompt: int, **inputs: Any) -> Any:
    """Run the backbone; return the states that predict completions, [B, 1 + T, width]."""
    output = own(**inputs)
    output.last_hidden_state = output.last_hidden_state[:, prompt - 1 :]
    return output


def _shared(backbone: Any, own: Callable[..., Any], prompt: int, **inputs: Any) -> Any:
    """Do the same with each distinct prompt run once, and completions on copies of its cache."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    first, back = distinct(prompts_of(ids[:, :prompt], inputs))
    if len(first) == len(back):
        return _whole(own, prompt, **inputs)
    at = torch.tensor(first, device=ids.device)
    once = of_rows(at, {name: inputs[name] for name in ("pixel_values", "image_grid_thw")})
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        once[name] = inputs[name][at, :prompt]
    asked = own(**once, use_cache=True)
    rows = torch.tensor(back, device=ids.device)
    asked.past_key_values.batch_select_indices(rows)
    # text after a picture counts on from the picture's own, shorter way of counting (M-RoPE)
    places = (mask.cumsum(1) - 1)[:, prompt:] + backbone.rope_deltas[rows]
    said = own(
        input_ids=ids[:, prompt:],
        attention_mask=mask,
        position_ids=places.expand(3, -1, -1),
        past_key_values=asked.past_key_values,
        use_cache=True,
    )
    last = asked.last_hidden_state[rows, -1:]  # it predicts a completion's first token
    said.last_hidden_state = torch.cat([last, said.last_hidden_state], dim=1)
    return said


class FastPaths:
    """Mixin in front of TRL's GRPOTrainer; `fast` names the paths that it takes.

    images: a picture is opened and processed once a round. vision: a frozen tower encodes it once
    (implies images). prefill: a group's prompt runs once, when sampling and, with vision and
    padding, in every other pass. ended: rows that have ended leave the batch when sampling.
    padding: passes are as wide as their longest row, rows sorted. lengths: with padding, rows are
    sorted over all micro-batches of an optimizer step.
    A path that does not apply to the model or the machine is left, and said so once.
    """

    fast: Sequence[str] = PATHS
    untested: Sequence[str] = ()  # settings of `grpo.extra` that no path is compared under
    _pictures: Pictures | None = None
    _pass: tuple = ()  # log-probs and entropies [B, T] of the last forward pass
    _known: tuple | None = None  # the same of a pass that need not be made again

    def _bare(self, model: Any) -> Any:
        """Return the model itself, out of what accelerate and PEFT wrap it in."""
        model = self.accelerator.unwrap_model(model)
        return getattr(model, "get_base_model", lambda: model)()

    def _backbone(self, model: Any) -> Any:
        """Return the part below the head: vision tower and language model."""
        return self._bare(model).base_model

    @functools.cached_property
    def _paths(self) -> set[str]:
        """Return the paths that apply; print why others do not."""
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        reasons = dict.fromkeys((VISION, PREFILL, ENDED), "the weights are sharded" * sharded)
        reasons[VISION] = reasons[VISION] or self._tower_moves()
        mixed = self._entropy_bonus_enabled or self.top_entropy_quantile < 1
        if mixed or self.aux_loss_enabled or self.loss_type not in ORDERLESS:
            reasons[LENGTHS] = "the loss depends on which rows share a micro-batch"
        if self.untested:
            said = f"not compared with TRL's trainer under grpo.extra.{', '.join(self.untested)}"
            reasons = dict.fromkeys(self.fast, said)
        for path, reason in reasons.items():
            if path in self.fast and reason and self.accelerator.is_main_process:
                say(f"grpo.fast: without {path}: {reason}")
        return {path for path in self.fast if not reasons.get(path)}

    def _tower_moves(self) -> str:
        """Say why a picture's features may change in a round or differ between models; or not."""
        tower = self._backbone(self.model).visual
        if any(p.requires_grad for p in tower.parameters()):
            return "the vision tower is trained"
        if self.ref_model is None:
            return ""
        other = self._backbone(self.ref_model).visual
        pairs = zip(tower.parameters(), other.parameters(), strict=True)
        same = all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)
        return "" if same else "the reference has another vision tower"

    def _serve_features(self) -> Callable[[Tensor, Tensor], Sequence[Tensor]]:
        """Let policy and reference take a picture's features by its number; return the tower."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        backbones = [self._backbone(m) for m in (self.model, self.ref_model) if m is not None]
        encode = backbones[0].get_image_features

        def features(pixel_values: Tensor, image_grid_thw: Tensor, **kwargs: Any) -> Any:
            if pixel_values.is_floating_point():  # pixels, from elsewhere than a round
                return encode(pixel_values, image_grid_thw, **kwargs)
            found = self._pictures.features(pixel_values, image_grid_thw)
            return BaseModelOutputWithPooling(pooler_output=found)

        def tower(patches: Tensor, grids: Tensor) -> Sequence[Tensor]:
            with torch.no_grad(), self.accelerator.autocast():
                return encode(patches, grids, return_dict=True).pooler_output

        for backbone in backbones:
            backbone.get_image_features = features
        return tower

    def train(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().train(*args, **kwargs)
        finally:  # the model is its old self again
            for model in (self.model, self.ref_model):
                if model is not None:
                    vars(self._backbone(model)).pop("get_image_features", None)
            self._pictures = None

    def _generate_and_score_completions(self, inputs: list[dict]) -> dict[str, Any]:
        if not self._paths & {IMAGES, VISION}:
            return super()._generate_and_score_completions(inputs)
        if self._pictures is None:
            tower = self._serve_features() if VISION in self._paths else None
            self._pictures = Pictures(self.processing_class.image_processor, tower)
        if self.model.training:  # what is evaluated in between joins the round
            self._pictures.forget()
        with self._pictures.served():
            return super()._generate_and_score_completions(inputs)

    def _generate_single_turn(
        self, prompt_ids: list, images: list | None, *args: Any, **kwargs: Any
    ) -> tuple:
        if self.use_vllm:  # what follows it does by itself
            given = self._for_vllm(prompt_ids, images)
            return super()._generate_single_turn(*given, *args, **kwargs)
        with contextlib.ExitStack() as stack:
            base, paths = self._bare(self.model), self._paths
            if ENDED in paths:
                leaving = functools.partial(base.generate, custom_generate=decode)
                stack.enter_context(replaced(base, "generate", leaving))
            if PREFILL in paths:
                shown = [i or () for i in images or [()] * len(prompt_ids)]
                # one picture from another: by its path, or which object it is
                named = [[i if isinstance(i, str) else id(i) for i in row] for row in shown]
                asked = [(*own, *ids) for own, ids in zip(named, prompt_ids, strict=True)]
                first, back = distinct(asked)
                if len(first) < len(back) and all(len(row) == 1 for row in shown):
                    stack.enter_context(prefilled_once(base, first, back))
            return super()._generate_single_turn(prompt_ids, images, *args, **kwargs)

    def _for_vllm(self, prompt_ids: list, images: list | None) -> tuple[list, list | None]:
        """Return prompts and pictures such that vLLM reads what the trainer does."""
        processor = self.processing_class
        if images:  # it knows no paths
            opened = processor.image_processor.fetch_images(images)
            cut = {id(image): whole_patches(image, processor) for row in opened for image in row}
            images = [[cut[id(image)] for image in row] for row in opened]
        if self.vllm_mode == "colocate":
            # TRL 1.16 hands over one image token a feature, and vLLM repeats the first of them once
            # more (huggingface/trl#6294, open); its server gets features and their places instead
            prompt_ids = [collapsed(ids, processor.image_token_id) for ids in prompt_ids]
        return prompt_ids, images

    def _shares(self, backbone: Any, columns: dict[str, Any]) -> bool:
        """Say whether a pass may share prompts: a cache, and pictures known by their number."""
        recomputed = backbone.is_gradient_checkpointing and backbone.training  # it has no cache
        numbered = (rows := columns.get("pixel_values")) is not None and rows.shape[1] == 1
        return {PREFILL, VISION} <= self._paths and numbered and not recomputed

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """Let TRL sample a round and split it; then sort the rows of each optimizer step."""
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self._buffered_inputs is before or not {LENGTHS, PADDING} <= self._paths:
            return inputs
        batches, n = self._buffered_inputs, self.args.steps_per_generation
        # micro-batches that are in one round and in one optimizer step
        together = math.gcd(n, self.args.gradient_accumulation_steps)
        if together > 1:
            steps = (batches[at : at + together] for at in range(0, n, together))
            self._buffered_inputs = [batch for step in steps for batch in self._sorted(step)]
        return self._buffered_inputs[self._step % n]

    def _sorted(self, stock: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return as many micro-batches, of the same rows in another order."""
        whole, groups = joined(stock), None
        if any(n != 1 for n in whole.get("num_images") or ()):  # `of_rows` knows no such rows
            return stock
        lengths = whole["prompt_mask"].sum(1) + whole["completion_mask"].sum(1)
        if self._shares(self._backbone(self.model), whole):
            _, groups = distinct(prompts_of(whole["prompt_ids"], whole))
        logged = [{k: v for k, v in batch.items() if k != "pixel_values"} for batch in stock]
        window = Window(logged, alike(lengths, groups))
        parts = window.order.split(len(lengths) // len(stock))
        return [of_rows(rows, whole) | {"window": window} for rows in parts]

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        if (window := inputs.get("window")) is None:
            return super()._compute_loss(model, inputs)
        logs, self._metrics["train"] = self._metrics["train"], defaultdict(list)
        try:
            loss = super()._compute_loss(model, inputs)
        finally:
            self._metrics["train"] = logs
        window.passes.append(self._pass)
        if len(window.passes) == len(window.stock):
            with torch.no_grad():  # TRL logs the step by its own micro-batches, without a pass
                for batch, self._known in zip(window.stock, window.unsorted(), strict=True):
                    super()._compute_loss(model, batch)
            self._known = None
        return loss

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple:
        if self._known:
            return self._known
        found = self._narrow_pass(*args, **kwargs)
        self._pass = tuple(None if v is None else v.detach() for v in found[:2])
        return found

    def _narrow_pass(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **columns: Any,
    ) -> tuple:
        """Do what TRL does, on no more columns, prompts and gradients than are needed."""
        once = super()._get_per_token_logps_and_entropies
        flags = {k: columns.pop(k) for k in ("compute_entropy", "compute_aux_loss") if k in columns}
        single = all(n == 1 for n in columns.get("num_images") or ())  # pictures a row
        if PADDING not in self._paths or not single:
            return once(model, input_ids, attention_mask, logits_to_keep, batch_size,
                        **flags, **columns)  # fmt: skip
        prompt, groups = input_ids.shape[1] - logits_to_keep, None
        size = batch_size or len(input_ids)
        if share := self._shares(self._backbone(model), columns):
            _, groups = distinct(prompts_of(input_ids[:, :prompt], columns))
        model = narrow(model, self._backbone(model), prompt, share)
        # DDP wants one forward pass a backward pass, and a GPU is best kept full
        alone = self.accelerator.num_processes == 1 or not torch.is_grad_enabled()
        if alone and self.accelerator.device.type == "cpu":
            size = min(size, CHUNK)
        order = alike(attention_mask.sum(1), groups).split(size)
        order = [rows.sort()[0] for rows in order]
        found = [
            once(model, input_ids[rows], attention_mask[rows], logits_to_keep,
                 **flags, **of_rows(rows, columns))
            for rows in order
        ]  # fmt: skip
        back = torch.cat(order).argsort()
        logps, entropies, losses = zip(*found, strict=True)
        return (
            torch.cat(logps)[back],
            None if entropies[0] is None else torch.cat(entropies)[back],
            None if losses[0] is None else torch.stack(losses).mean(),
        )
