"""The decoding loop, in which a row that has ended leaves the batch.

Hugging Face's loop runs every row until the longest has ended; completions differ in length, so
most of that is work for rows that say nothing any more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SHARE = 8  # ours: rows leave once this part of the batch has ended, since leaving copies the cache
BY_ROW = ("attention_mask", "token_type_ids", "mm_token_type_ids", "position_ids")


def decode(
    model: Any,
    input_ids: Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    **inputs: Any,
) -> Tensor:
    """Continue prompts by sampling or greedily: `model.generate(..., custom_generate=decode)`.

    The draws are those of Hugging Face's own loop, so a seed gives the same completions; tested.
    Not for beams, scores, streamers and models whose ranks must run in step (FSDP, ZeRO-3).

    Args:
        input_ids: [B, P] prompts, left-padded.
        inputs: what `generate` prepared; the cache among it is used up.
    Returns:
        [B, P + T] tokens, rows that ended earlier padded.
    """
    pad = generation_config._pad_token_tensor
    padding = 0 if pad is None else int(pad)  # without a padding token no row ends before the limit
    prompts, batch = input_ids, len(input_ids)
    columns: list[Tensor] = []
    alive = torch.arange(batch, device=input_ids.device)  # the rows that are still in the batch
    going = torch.ones_like(alive, dtype=torch.bool)  # those of them that have not ended
    while going.any():
        ready = model.prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=1 if columns else None,
            is_first_iteration=not columns,
            **inputs,
        )
        output = model(**ready, return_dict=True)
        inputs = model._update_model_kwargs_for_generation(output, inputs)
        scores = output.logits[:, -1].to(copy=True, dtype=torch.float32)
        del output
        scores = logits_processor(input_ids, scores)
        if generation_config.do_sample:
            # torch.multinomial's own method, with noise for all rows: the same draws as it makes
            noise = scores.new_empty(batch, scores.shape[1]).exponential_()
            chosen = (scores.softmax(-1) / noise[alive]).argmax(-1)
        else:
            chosen = scores.argmax(-1)
        chosen = torch.where(going, chosen, padding)
        columns.append(torch.full((batch,), padding, device=chosen.device))
        columns[-1][alive] = chosen
        input_ids = torch.cat([input_ids, chosen[:, None]], dim=1)
        going = going & ~stopping_criteria(input_ids, None)
        ended = len(going) - int(going.sum())
        if ended < len(going) and ended * SHARE >= len(going):
            alive, input_ids = alive[going], input_ids[going]
            inputs["past_key_values"].batch_select_indices(going.nonzero()[:, 0])
            for name in BY_ROW:
                if (value := inputs.get(name)) is not None:  # M-RoPE: [4, B, T]
                    inputs[name] = value[:, going] if value.ndim == 3 else value[going]
            going = going[going]
    return torch.cat([prompts, torch.stack(columns, dim=1)], dim=1)
