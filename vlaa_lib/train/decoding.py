"""The decoding loop, in which sequences that have ended are removed from the batch.

Hugging Face's loop computes every row until the longest has ended; completions differ in length, so
most of that is work for rows that say nothing any more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

PART = 8  # ours: remove rows once an eighth has ended, since that copies the cache
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

    The noise is that of Hugging Face's own loop, so a seed gives the same completions wherever a
    row's logits do not depend on the size of the batch (tested on a CPU in float32). Without a
    growing cache, or where more than tokens is asked for, that loop does the work.

    Args:
        input_ids: [B, P] prompts, left-padded.
        inputs: what `generate` prepared; the cache among it is used up.
    Returns:
        [B, P + T] tokens, rows that ended earlier padded.
    """
    from transformers import DynamicCache

    wanted = generation_config
    if wanted.num_beams and wanted.num_beams > 1:
        raise ValueError("decode samples or is greedy; leave custom_generate out for beam search")
    grows = inputs.get("use_cache") and isinstance(inputs["past_key_values"], DynamicCache)
    if not grows or wanted.return_dict_in_generate or wanted.prefill_chunk_size:
        given = logits_processor, stopping_criteria, wanted
        return model._sample(input_ids, *given, **inputs)
    pad = wanted._pad_token_tensor
    padding = 0 if pad is None else int(pad)  # without a padding token no row ends before the limit
    prompts, batch = input_ids, len(input_ids)
    columns: list[Tensor] = []
    kept = torch.arange(batch, device=input_ids.device)  # rows that are still in the batch
    unfinished = torch.ones_like(kept, dtype=torch.bool)  # those of them that have not ended
    left = batch
    while left:
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
        if wanted.do_sample:
            # torch.multinomial's own method, with noise for all rows: the same draws as it makes
            noise = scores.new_empty(batch, scores.shape[1]).exponential_()
            chosen = (scores.softmax(-1) / noise[kept]).argmax(-1)
        else:
            chosen = scores.argmax(-1)
        chosen = torch.where(unfinished, chosen, padding)
        columns.append(torch.full((batch,), padding, device=chosen.device))
        columns[-1][kept] = chosen
        input_ids = torch.cat([input_ids, chosen[:, None]], dim=1)
        unfinished = unfinished & ~stopping_criteria(input_ids, None)
        # one look at the device a token; argmax would take NaN for the highest score
        left, broken = torch.stack([unfinished.sum(), scores.isnan().any()]).tolist()
        if broken:
            raise RuntimeError("the model's scores of the next token are not numbers (NaN)")
        if left and (len(kept) - left) * PART >= len(kept):
            kept, input_ids = kept[unfinished], input_ids[unfinished]
            inputs["past_key_values"].batch_select_indices(unfinished.nonzero()[:, 0])
            for name in BY_ROW:
                if (value := inputs.get(name)) is not None:  # M-RoPE: [4, B, T]
                    inputs[name] = value[:, unfinished] if value.ndim == 3 else value[unfinished]
            for processor in logits_processor:  # the repetition penalty's: where a prompt starts
                if (starts := getattr(processor, "prompt_ignore_length", None)) is not None:
                    processor.prompt_ignore_length = starts[unfinished.to(starts.device)]
            unfinished = unfinished[unfinished]
    return torch.cat([prompts, torch.stack(columns, dim=1)], dim=1)
