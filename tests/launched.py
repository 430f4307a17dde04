"""What test_distributed.py runs alone and in each of two processes: SFT, then GRPO.

GRPO's sampling is replaced: TRL seeds each process differently, so that sampled completions never
agree between one process and two. Fixed ones must give the same loss, gradient, KL and reward.
"""

import os
import sys
from pathlib import Path

import pytest

from vlaa_lib import prompts, records
from vlaa_lib.__main__ import main
from vlaa_lib.train import events

STEPS = 3


def completions_of(folder: Path):
    """Return a method for GRPOTrainer whose completions depend on prompt and group place only."""
    made = records.load(folder / "records.jsonl").records

    def fixed(self, prompt_ids, images, multimodal_fields, num_generations, *rest):
        tokenizer = self.processing_class.tokenizer
        found = []
        for place, ids in enumerate(prompt_ids):
            asked = tokenizer.decode(ids)
            gold = next(record.solution for record in made if record.question in asked)
            texts = [  # one of four right, with a length of its own each
                prompts.join_think_answer("I look at the picture.", gold),
                prompts.join_think_answer("I guess.", "none of these"),
                gold,
                "I do not know, and I say so at some length.",
            ]
            text = texts[place % num_generations]
            found.append([*tokenizer(text)["input_ids"], tokenizer.eos_token_id])
        return found, None

    return fixed


def both(model: str, folder: Path, out: Path) -> None:
    """Train the two methods by the command line, for a few optimizer steps each."""
    import trl

    source = ["--records", folder / "records.jsonl", "--images", folder / "images"]
    source += ["--profile", "smoke", "--steps", STEPS]
    # one micro-batch a step however many processes: TRL logs KL as a mean over micro-batches of
    # means over tokens, which depends on how completions fall into them (the loss does not)
    share = 16 // int(os.environ.get("WORLD_SIZE", "1"))
    batches = [f"{method}.per_device_batch={share}" for method in ("sft", "grpo")]
    batches.append(f"model.policy={model}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trl.GRPOTrainer, "_generate_single_turn", completions_of(folder))
        for method in ("sft", "grpo"):
            words = ["train", method, *source, "--out", out / method, "--set", *batches]
            if main([str(word) for word in words]):
                raise SystemExit(f"{method} failed")


if __name__ == "__main__":
    both(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
    from accelerate.state import AcceleratorState

    events.emit("kind", name=AcceleratorState().distributed_type.value)
