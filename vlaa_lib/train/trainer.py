"""The trainers: TRL's, whose checkpoints are whole; for GRPO also traces, a steered KL, a stop.

What GRPO does, from top to bottom, as in `TracingGRPOTrainer`; B prompts a round on this process, G
completions of each, P and T columns of prompts and completions:

1. `_generate_and_score_completions`: a sampling round. The KL coefficient is steered, TRL samples
   B*G completions (`_generate`; groups without spread may be drawn anew), takes log-probs
   [B*G, T] of the reference, asks the reward functions for rewards [B, G] and centres them in
   each group; the rollouts become trace rows.
2. `_compute_loss`: one micro-batch [b, T] of those rows, as often as a round has micro-batches:
   log-probs of the policy, ratio, clip, KL. `objective.py` shows that term by term.
3. TRL steps the optimizer after `gradient_accumulation_steps` micro-batches, and calls `log`.

`fast.py` does less in 1 and 2, at the same numbers.
"""

from __future__ import annotations

import random
import statistics
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from trl import GRPOTrainer, SFTTrainer
from trl.data_utils import prepare_multimodal_messages

from vlaa_lib import Halted, rewards
from vlaa_lib.escape import say
from vlaa_lib.prompts import has_aha
from vlaa_lib.records import from_columns
from vlaa_lib.rewards.signs import Watch, kinds
from vlaa_lib.traces import TraceStore, step_counts

from .checkpoints import Resumable
from .fast import FastPaths
from .objective import k3

# mean difference of log-probabilities, vLLM's and the trainer's, in nats a token. Measured with
# equal weights in float32: 7e-7; with every prompt corrupted: 0.054. Rounding to bf16 lies between
SAMPLER_DIFFERS, SAMPLER_IS_ANOTHER = 1e-3, 0.02
CLIP = 0.2  # OpenRLHF: one update changes the coefficient by this share of n / horizon at most
COMPLETIONS = 3  # in what `_generate` returns: after prompt ids, completion ids, tool mask
Row = dict[str, Any]


class SupervisedTrainer(Resumable, SFTTrainer):
    """SFTTrainer whose checkpoints are whole, and whose loss counts every token alike."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # transformers 5.23 says that Qwen2.5-VL cannot divide by the tokens of the whole batch,
        # and the loss becomes a mean of micro-batches' means; TRL divides by itself, and can
        self.model_accepts_loss_kwargs = True


@dataclass
class AdaptiveKL:
    """Raise the KL coefficient when policy and reference are further apart than the target.

    The proportional controller of Ziegler et al. 2019, as OpenRLHF applies it, once a sampling
    round: beta *= 1 + clip(kl / target - 1, -0.2, 0.2) * n / horizon. The paper's "1e-3, 5e-4"
    (table 6) are the first coefficient and this target, not the ends of a schedule.

    Attributes:
        beta: the coefficient, now.
        target: divergence to steer to, in nats a token.
        horizon: completions over which a steady error moves beta by about a fifth.
    """

    beta: float
    target: float
    horizon: int

    def update(self, kl: float, n: int) -> float:
        """Take in a round's mean divergence over n completions; return the new coefficient.

        >>> AdaptiveKL(1e-3, 5e-4, 10000).update(kl=1.0, n=2048)
        0.00104096
        """
        error = min(max(kl / self.target - 1, -CLIP), CLIP)
        self.beta *= 1 + error * n / self.horizon
        return self.beta


class TracingGRPOTrainer(Resumable, FastPaths, GRPOTrainer):
    """GRPOTrainer with a trace store, a KL controller, a watch over its rewards, fast paths.

    Attributes, set after construction:
        controller: steers `beta` once a sampling round; None leaves it as it is.
        dead_rounds: sampling rounds without any signal that end the training; 0 for none.
        redraws: so many times a round, groups whose rewards are equal are drawn anew.
        stamp: columns of the trace store that are the same in every row.
        token_logps: keep the log-prob and entropy of every token in the store.
    """

    store: TraceStore | None = None
    watch: Watch | None = None
    controller: AdaptiveKL | None = None
    dead_rounds = 0
    redraws = 0
    token_logps = False

    def __init__(self, *args: Any, **kwargs: Any):
        self.stamp: Row = {"model": "grpo"}
        self._round_kl: list[float] = []  # of the optimizer steps since the last round
        self._is_sampler_known = False  # vLLM's first round has been compared
        self._silent = 0  # rounds in which no group had a spread
        self._rows: list[Row] = []  # the round's rollouts, for the trace store
        self._unseen: set[int] = set()  # those whose tokens the policy has not read since
        super().__init__(*args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().train(*args, **kwargs)
        finally:
            self._write_round()

    def _generate_and_score_completions(self, inputs: list[Row]) -> dict[str, Any]:
        """Do a sampling round; `inputs` are its B*G dataset rows, each prompt's G times in turn."""
        self._asked = inputs
        self._write_round()  # TRL may drop the rest of a round, as at the end of an epoch
        if self.controller and self._round_kl:
            n = len(inputs) * self.accelerator.num_processes
            self.beta = self.controller.update(statistics.mean(self._round_kl), n)
        self._round_kl = []
        # prompt_ids [B*G, P], completion_ids, completion_mask and log-probs [B*G, T],
        # advantages [B*G]
        output = super()._generate_and_score_completions(inputs)
        self._rows = self._trace_rows(inputs, output)
        self._unseen = set(range(len(self._rows)))
        # TRL shuffles and splits the round: this says which rollout a row of a batch is
        output["rollout"] = torch.arange(len(self._rows), device=output["advantages"].device)
        if self.model.training:
            self._compare_sampler()
            self._look_at_round(inputs)
        return output

    def _generate(self, prompts: list) -> tuple:
        """Sample; then start the workers, whose verdicts TRL asks for after other passes."""
        generated = super()._generate(prompts)
        if self.redraws and self.model.training:
            self._draw_anew(prompts, generated)
        rewards.start(_columns(self._asked), generated[COMPLETIONS])
        return generated

    def _draw_anew(self, prompts: list, generated: tuple) -> None:
        """Put groups of other records in the place of those whose mixed rewards are equal.

        Such a group has no advantage and teaches nothing: DAPO's dynamic sampling (arXiv
        2503.14476), at most `redraws` times. All lists change in place, as TRL holds `prompts` and
        the rows of the dataset; the log tells what the first draw earned.

        Args:
            prompts, generated: of B*G rollouts, and what `_generate` makes of them.
        """
        g, process = self.num_generations, self.accelerator.process_index
        metrics, earned = self._metrics["train"], self._earned(prompts, self._asked, generated)
        dead = _without_spread(earned, g)
        first = gather_object([(sum(earned), len(earned), len(dead))])
        rewarded, rollouts, silent = map(sum, zip(*first, strict=True))
        metrics["first_draw/reward"].append(rewarded / rollouts)
        metrics["first_draw/frac_reward_zero_std"].append(silent * g / rollouts)
        drawn = 0
        for draw in range(self.redraws):
            # all processes sample alike often, as sharded weights and vLLM need it
            most = max(gather_object([len(dead)]))
            if not most:
                break
            rng = random.Random(f"{self.args.seed}/{self.state.global_step}/{draw}/{process}")
            chosen = rng.sample(range(len(self.train_dataset)), min(most, len(self.train_dataset)))
            rows = [self.train_dataset[number] for number in chosen for _ in range(g)]
            asked = [prepare_multimodal_messages(r["prompt"], images=[r["image"]]) for r in rows]
            new = super()._generate(asked)
            drawn += len(chosen)
            silent = set(_without_spread(self._earned(asked, rows, new), g))
            alive = [at for at in range(len(chosen)) if at not in silent]
            pairs = [(prompts, asked), (self._asked, rows), *zip(generated, new, strict=True)]
            columns = [pair for pair in pairs if isinstance(pair[0], list) and pair[0]]
            for place, at in zip(dead, alive, strict=False):
                here, there = slice(place * g, place * g + g), slice(at * g, at * g + g)
                for old, fresh in columns:
                    old[here] = fresh[there]
            dead = dead[len(alive) :]
        metrics["redrawn_groups"].append(sum(gather_object([drawn])))

    def _earned(self, prompts: list, rows: list[Row], generated: tuple) -> list[float]:
        """Return the mixed rewards of B*G rollouts."""
        mixed = self.reward_funcs[0]
        return mixed(prompts, generated[COMPLETIONS], **_columns(rows))

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Return the loss of one micro-batch [b, T]; its log-probs go to the traces."""
        loss = super()._compute_loss(model, inputs)
        if "rollout" in inputs:
            self._note_pass(inputs, *self._pass)
        self._pass = ()
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log an optimizer step, with its KL coefficient; keep its KL for the controller."""
        if "loss" in logs:
            logs["beta"] = self.beta
        super().log(logs, start_time)
        if logs.get("kl") is not None:
            self._round_kl.append(logs["kl"])

    # --- what a resumed run needs beyond TRL's state ---

    def own_state(self) -> dict[str, Any]:
        return {"beta": self.beta, "round_kl": self._round_kl, "silent": self._silent}

    def restore(self, state: dict[str, Any]) -> None:
        self.beta, self._round_kl = state["beta"], state["round_kl"]
        self._silent = state["silent"]
        if self.controller:
            self.controller.beta = self.beta

    # --- traces: rows of a round wait until the policy says how likely their tokens are ---

    def _trace_rows(self, inputs: list[Row], output: dict[str, Any]) -> list[Row]:
        """Return a row a rollout of this process: who, what, how scored; never pixels."""
        rank, n = self.accelerator.process_index, len(inputs)
        # TRL's logs hold the rows of all processes, and the last of them are this round's
        first = (rank - self.accelerator.num_processes) * n
        mine = slice(first, first + n or None)
        # sampling rounds since the start of the run, interruptions included
        per_step = self.args.gradient_accumulation_steps  # micro-batches
        done = self.state.global_step * per_step + self._step % per_step
        stamp = self.stamp | {
            "sampling_round": done // (self.args.steps_per_generation * self.num_iterations),
            "optimizer_step": self.state.global_step,
        }
        stops = self.model.generation_config.eos_token_id
        stops = stops if isinstance(stops, list) else [stops]
        rows = []
        for example, ids, length, advantage, reward, reason in zip(
            inputs,
            output["completion_ids"].tolist(),
            output["completion_mask"].sum(1).tolist(),
            output["advantages"].tolist(),
            list(self._logs["rewards"]["mixed_reward"])[mine],
            list(self._logs["extra"]["reason"])[mine],
            strict=True,
        ):
            ids = ids[:length]
            has_ended = bool(ids) and ids[-1] in stops
            raw = self.processing_class.decode(ids[:-1] if has_ended else ids)
            completion = self.processing_class.decode(ids, skip_special_tokens=True)
            rows.append(stamp | {
                "record_id": example["id"],
                "source": example["source"],
                "part": example["reward"],
                "image": example["picture"],  # the column `image` is a path of this machine
                "completion": completion,
                "completion_tokens": length,
                "clipped": not has_ended,
                "suspicious": kinds(raw, example["question"], example["reward"]),
                **step_counts(completion, example["meta"].get("scene")),
                "advantage": advantage,
                "reward": reward,
                "reason": reason,
            })  # fmt: skip
        return rows

    def _note_pass(self, inputs: dict[str, Any], logps: Tensor, entropies: Tensor) -> None:
        """Take log-probs and entropies [b, T] of the loss's pass; the last one writes the round.

        So nothing is computed twice. With one optimizer step a round that pass is the policy that
        sampled; with several, `old_per_token_logps` are, and the entropy is that of the policy in
        its first pass over the rollout.
        """
        old, ref = inputs.get("old_per_token_logps"), inputs.get("ref_per_token_logps")  # [b, T]
        logps = (logps if old is None else old).float()
        values = {"mean_logp": logps, "entropy": entropies, "kl": None}
        if ref is not None:
            values["kl"] = k3(logps, ref.float())
        lengths = inputs["completion_mask"].sum(1).tolist()
        for at, (place, length) in enumerate(zip(inputs["rollout"].tolist(), lengths, strict=True)):
            if place not in self._unseen or not length:
                self._unseen.discard(place)  # a later pass over it, or nothing was said
                continue
            self._unseen.remove(place)
            row = self._rows[place]
            for name, found in values.items():
                row[name] = None if found is None else found[at, :length].float().mean().item()
            if self.token_logps:
                ids, decode = inputs["completion_ids"][at, :length], self.processing_class.decode
                row["pieces"] = [decode([token]) for token in ids.tolist()]  # half a letter: U+FFFD
                row["logps"] = logps[at, :length].tolist()
                row["entropies"] = entropies[at, :length].float().tolist()
        if not self._unseen:
            self._write_round()

    def _write_round(self) -> None:
        """Write the round, once; what was not seen has no log-probs."""
        if self.store is not None and self._rows:
            self.store.append(self._rows, self.accelerator.process_index)
        self._rows, self._unseen = [], set()

    def _compare_sampler(self) -> None:
        """Stop where vLLM does not sample from the policy that is trained; in the first round."""
        if self._is_sampler_known or not self.use_vllm:
            return
        self._is_sampler_known = True
        found = self._metrics["train"]["sampling/sampling_logp_difference/mean"][-1]
        said = (
            f"vLLM's log-probabilities of what it sampled are {found:.2g} nats a token from the "
            "trainer's, on average"
        )
        if not found <= SAMPLER_IS_ANOTHER:
            raise Halted(
                f"step {self.state.global_step}: {said}; above {SAMPLER_IS_ANOTHER} it reads other "
                "prompts, pictures or weights than are trained. Look at its image budget "
                "(min_pixels, max_pixels), its model and its version, or set grpo.sampler: "
                "transformers"
            )
        if found > SAMPLER_DIFFERS and self.accelerator.is_main_process:
            say(f"{said}: rounding, or a small difference between the two models")

    def _look_at_round(self, inputs: list[Row]) -> None:
        """Log what TRL does not, and stop where nothing has been learnt for long."""
        metrics, of_all = self._metrics["train"], gather_object(self._rows)
        aha = [has_aha(row["completion"]) for row in of_all]
        metrics["aha_rate"].append(sum(aha) / max(1, len(aha)))
        for name, value in (self.watch.add(of_all) if self.watch else {}).items():
            metrics[name].append(value)
        has_signal = metrics["frac_reward_zero_std"][-1] < 1.0
        self._silent = 0 if has_signal else self._silent + 1
        if not self.dead_rounds or self._silent < self.dead_rounds:
            return
        said = [row["completion"] for row in self._rows]
        found = rewards.examine(from_columns(_columns(inputs)), said)
        raise Halted(
            f"step {self.state.global_step}: {self._silent} sampling rounds without a group "
            f"whose rewards differ; {found.problem}. The doctor on the last round:\n"
            + "\n".join(", ".join(f"{k} {v}" for k, v in row.items()) for row in found.table)
        )


def _without_spread(rewards: list[float], size: int) -> list[int]:
    """Return the numbers of the groups whose rewards are equal, and so all advantages 0.

    >>> _without_spread([1.0, 1.0, 0.0, 1.0], 2)
    [0]
    """
    groups = [rewards[at : at + size] for at in range(0, len(rewards), size)]
    return [number for number, group in enumerate(groups) if len(set(group)) == 1]


def _columns(rows: list[Row]) -> dict[str, list]:
    """Return dataset rows as TRL hands them to rewards: a list a column."""
    return {name: [row[name] for row in rows] for name in rows[0]}
