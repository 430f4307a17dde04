"""vLLM as the sampler, against a stand-in that does with prompts and pictures what vLLM does.

The engine itself runs in tests/engines.
"""

import pytest
import torch
from PIL import Image

from test_train import settings
from vlaa_lib import Halted, train
from vlaa_lib.models import load_processor
from vlaa_lib.train import fast
from vlaa_lib.train.grpo import sampler_args

LONG = 6  # tokens of a completion


class Engine:
    """What TRL's VLLMGeneration gives: completions, and log-probs by the model of what it reads.

    Of a prompt with one picture vLLM takes the first image token and puts as many in its place as
    the picture has features.
    """

    seen = ()

    def __init__(self, model, processing_class, mode, temperature, **given):
        self.model, self.processor = model, processing_class
        self.mode, self.temperature = mode, temperature

    def sync_weights(self):
        pass

    def generate(self, prompts, images, num_generations, profiler=None):
        type(self).seen = list(zip(prompts, images, strict=True))
        rows = [self.answer(ids, *shown) for ids, shown in self.seen]
        completions, logprobs = zip(*rows, strict=True)
        return prompts, list(completions), [[[one] for one in row] for row in logprobs], None

    @torch.no_grad()
    def answer(self, ids, image):
        assert isinstance(image, Image.Image), "vLLM takes pictures, no paths"
        token, cutter = self.processor.image_token_id, self.processor.image_processor
        made = cutter._preprocess_own([image])
        features = int(made["image_grid_thw"].prod()) // cutter.merge_size**2
        first = ids.index(token)
        after = [self.processor.tokenizer.pad_token_id if one == token else one
                 for one in ids[first + 1 :]]  # fmt: skip
        read = ids[:first] + [token] * features + after
        if self.mode == "server":  # TRL hands it features and where they stand
            read = ids
        said = torch.randint(300, (LONG,)).tolist()
        row = torch.tensor([read + said])
        output = self.model(
            input_ids=row, attention_mask=torch.ones_like(row),
            mm_token_type_ids=(row == token).long(), **made,
        )  # fmt: skip
        logits = output.logits[0, -LONG - 1 : -1] / self.temperature
        return said, logits.log_softmax(-1)[range(LONG), said].tolist()


@pytest.fixture
def run(tiny_model, micro_data, tmp_path, monkeypatch):
    """Return a function that trains for a step with vLLM's stand-in and returns its log."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    own = Qwen2VLImageProcessorPil.preprocess
    monkeypatch.setattr(
        Qwen2VLImageProcessorPil, "_preprocess_own",
        lambda self, images: own(self, images, return_tensors="pt"), raising=False,
    )  # fmt: skip
    monkeypatch.setitem(sampler_args.__globals__, "find_spec", lambda name: name)
    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", Engine)
    folder, made = micro_data

    def trained(**changes):
        cfg = settings(tiny_model, **{
            "grpo.max_steps": 1, "grpo.max_completion_tokens": LONG, **changes,
        })  # fmt: skip
        return train.grpo(cfg, made, folder / "images", tmp_path / "out")

    return trained


@pytest.mark.parametrize("paths", [[], list(fast.PATHS)], ids=["stock", "fast"])
def test_a_colocated_vllm_reads_what_the_trainer_reads(paths, run, tiny_model):
    (row,) = run(**{"grpo.sampler": "vllm-colocate", "grpo.fast": paths})
    assert row["sampling/sampling_logp_difference/mean"] < 1e-5
    token = load_processor(tiny_model).image_token_id
    assert [(ids.count(token), len(shown)) for ids, shown in Engine.seen] == [(1, 1)] * 16


def test_a_corrupted_prompt_is_stopped_with_the_reason(run, monkeypatch):
    """As TRL 1.16 has it: vLLM repeats an image token that is repeated already."""
    monkeypatch.setattr(fast, "collapsed", lambda ids, token: ids)
    with pytest.raises(Halted, match="step 0: vLLM's log-prob.* above 0.02 it reads other prompts"):
        run(**{"grpo.sampler": "vllm-colocate"})


def test_a_small_difference_is_said_and_goes_on(run, monkeypatch, capsys):
    own = Engine.answer

    def rounded(self, ids, image):
        said, logprobs = own(self, ids, image)
        return said, [one + 0.01 for one in logprobs]

    monkeypatch.setattr(Engine, "answer", rounded)
    (row,) = run(**{"grpo.sampler": "vllm-colocate"})
    assert row["sampling/sampling_logp_difference/mean"] == pytest.approx(0.01, rel=1e-2)
    assert "vLLM's log-probabilities of what it sampled are 0.01 nats" in capsys.readouterr().out
