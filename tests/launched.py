"""What test_distributed.py runs alone and in each of two processes: SFT, GRPO, GRPO without KL.

GRPO's sampling is replaced: TRL seeds each process differently, so that sampled completions never
agree between one process and two. Fixed ones must give the same loss, gradient, KL and reward.
"""

import functools
import os
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from vlaa_lib import prompts, records
from vlaa_lib.__main__ import main
from vlaa_lib.train import rank_setup

STEPS = 3
PATIENCE = timedelta(minutes=3)  # then a process that waits for another fails; torch waits 30


def completions_of(folder: Path):
    """Return a method for GRPOTrainer whose completions depend on prompt and group place only.

    The groups of some questions all say the same: one process has them, the other has not.
    """
    made = records.load(folder / "records.jsonl").records
    flat = {record.id for record in made[::4]}

    def fixed(self, prompt_ids, images, multimodal_fields, num_generations, *rest):
        tokenizer = self.processing_class.tokenizer
        found = []
        for place, ids in enumerate(prompt_ids):
            asked = tokenizer.decode(ids)
            record = next(record for record in made if record.question in asked)
            gold = record.solution
            texts = [  # one of four right, with a length of its own each
                prompts.join_think_answer("I look at the picture.", gold),
                prompts.join_think_answer("I guess.", "none of these"),
                gold,
                "I do not know, and I say so at some length.",
            ]
            text = texts[0 if record.id in flat else place % num_generations]
            found.append([*tokenizer(text)["input_ids"], tokenizer.eos_token_id])
        return found, None

    return fixed


def both(model: str, folder: Path, out: Path) -> None:
    """Train by the command line, for a few optimizer steps each."""
    import torch.distributed as dist
    import trl

    source = ["--records", folder / "records.jsonl", "--images", folder / "images"]
    source += ["--profile", "smoke", "--steps", STEPS]
    # one micro-batch a step however many processes: TRL logs KL as a mean over micro-batches of
    # means over tokens, which depends on how completions fall into them (the loss does not)
    share = 16 // int(os.environ.get("WORLD_SIZE", "1"))
    batches = [f"{method}.per_device_batch={share}" for method in ("sft", "grpo")]
    batches.append(f"model.policy={model}")
    # without KL's log, in two: each process sorts its own rows, some of which have no advantage
    off = ["grpo", "grpo.kl=off", f"grpo.per_device_batch={share // 2}"]
    with pytest.MonkeyPatch.context() as patch:
        _train_on_cpu(patch)
        patch.setattr(trl.GRPOTrainer, "_generate_single_turn", completions_of(folder))
        patch.setattr(dist, "init_process_group", _impatient(dist.init_process_group))
        for name, (method, *changed) in {"sft": ["sft"], "grpo": ["grpo"], "off": off}.items():
            words = ["train", method, *source, "--out", out / name, "--set", *batches, *changed]
            if main([str(word) for word in words]):
                raise SystemExit(f"{name} failed")


def _train_on_cpu(patch) -> None:
    """Let accelerate and deepspeed share weights between processes without a GPU."""
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        from accelerate import PartialState
        from accelerate.utils import DistributedType

        start = PartialState.__init__

        def start_and_rename(self, *args, **kwargs) -> None:
            """accelerate 1.15 drops FSDP on a CPU silently and trains with DDP: only the kind
            MULTI_GPU and its like reach the FSDP branch of its state."""
            start(self, *args, **kwargs)
            if self.distributed_type == DistributedType.MULTI_CPU:
                self.distributed_type = DistributedType.MULTI_GPU

        patch.setattr(PartialState, "__init__", start_and_rename)
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        import deepspeed

        # before ZeRO-3 builds a model: else each process believes to be the only one
        deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)


def _impatient(own):
    return functools.wraps(own)(lambda *args, **given: own(*args, **given | {"timeout": PATIENCE}))


if __name__ == "__main__":
    both(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
    from accelerate.state import AcceleratorState

    rank_setup.emit("kind", name=AcceleratorState().distributed_type.value)
