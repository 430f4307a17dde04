"""The GRPO trainer: TRL's, which keeps every rollout, steers the KL and stops on a dead reward."""

from __future__ import annotations

import statistics
from functools import cache
from typing import Any

from vlaa_lib import Halted, rewards
from vlaa_lib.records import from_columns
from vlaa_lib.rewards.signs import Watch, kinds
from vlaa_lib.traces import TraceStore, has_aha, step_counts

from .checkpoints import Resumable
from .kl import AdaptiveKL
from .rollouts import Round


class DeadReward(Halted):
    """Nothing can be learnt from these rewards; the message holds the doctor's report."""


@cache
def trainer_class() -> type:
    """Return the GRPOTrainer subclass; made on first use, since importing TRL takes seconds."""
    import torch
    from accelerate.utils import gather_object
    from trl import GRPOTrainer

    from .fast import FastPaths

    class TracingGRPOTrainer(Resumable, FastPaths, GRPOTrainer):
        """GRPOTrainer with a trace store, a KL controller, a watch over its rewards, fast paths.

        Attributes:
            controller: steers `beta` once a sampling round; None leaves it as it is.
            dead_rounds: sampling rounds without any signal that end the training; 0 for none.
            overlap: check mathematics while the reference model runs; the same rewards.
            stamp: columns of the trace store that are the same in every row.
            token_logps: keep the log-prob of every token in the store.
        """

        store: TraceStore | None = None
        watch: Watch | None = None
        token_logps = False
        controller: AdaptiveKL | None = None
        dead_rounds = 0
        overlap = True

        def __init__(self, *args: Any, **kwargs: Any):
            self._round_kl: list[float] = []  # of the optimizer steps since the last round
            self._silent = 0  # rounds in which no group had a spread
            self.stamp: dict[str, Any] = {"model": "grpo"}
            self._rollouts = Round()
            super().__init__(*args, **kwargs)

        def own_state(self) -> dict[str, Any]:
            return {"beta": self.beta, "round_kl": self._round_kl, "silent": self._silent}

        def restore(self, state: dict[str, Any]) -> None:
            self.beta, self._round_kl = state["beta"], state["round_kl"]
            self._silent = state["silent"]
            if self.controller:
                self.controller.beta = self.beta

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            if "loss" in logs:
                logs["beta"] = self.beta
            super().log(logs, start_time)
            if logs.get("kl") is not None:
                self._round_kl.append(logs["kl"])

        def _generate(self, prompts: list) -> tuple:
            """Sample; then start the workers, whose verdicts TRL asks for after other passes."""
            generated = super()._generate(prompts)
            if self.overlap:
                completions = generated[3]  # prompt ids, completion ids, tool mask, completions
                rewards.start(_columns(self._rows), completions)
            return generated

        def _generate_and_score_completions(self, inputs: list[dict]) -> dict[str, Any]:
            self._rows = inputs
            self._rollouts.write()  # TRL may drop the rest of a round, as at the end of an epoch
            if self.controller and self._round_kl:
                n = len(inputs) * self.accelerator.num_processes
                self.beta = self.controller.update(statistics.mean(self._round_kl), n)
            self._round_kl = []
            output = super()._generate_and_score_completions(inputs)
            rows = self._trace_rows(inputs, output)
            pieces = self._pieces(output) if self.token_logps else None
            self._rollouts = Round(self.store, self.accelerator.process_index, rows, pieces)
            # TRL shuffles and splits the round: this says which rollout a row of a batch is
            output["rollout"] = torch.arange(len(rows), device=output["advantages"].device)
            if self.model.training:
                self._look_at_round(inputs, rows)
            return output

        def _pieces(self, output: dict[str, Any]) -> list[list[str]]:
            """Return the text of each token; half a character is shown as U+FFFD."""
            lengths = output["completion_mask"].sum(1).tolist()
            rows = zip(output["completion_ids"].tolist(), lengths, strict=True)
            decode = self.processing_class.decode
            return [[decode([token]) for token in ids[:length]] for ids, length in rows]

        def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
            loss = super()._compute_loss(model, inputs)
            if "rollout" in inputs:
                self._rollouts.see(inputs, *self._pass)
            self._pass = ()
            return loss

        def train(self, *args: Any, **kwargs: Any) -> Any:
            try:
                return super().train(*args, **kwargs)
            finally:
                self._rollouts.write()

        def _look_at_round(self, inputs: list[dict], rows: list[dict[str, Any]]) -> None:
            """Log what TRL does not, and stop where nothing has been learnt for long."""
            metrics, of_all = self._metrics["train"], gather_object(rows)
            aha = [has_aha(row["completion"]) for row in of_all]
            metrics["aha_rate"].append(sum(aha) / max(1, len(aha)))
            for name, value in (self.watch.add(of_all) if self.watch else {}).items():
                metrics[name].append(value)
            has_signal = metrics["frac_reward_zero_std"][-1] < 1.0
            self._silent = 0 if has_signal else self._silent + 1
            if self.dead_rounds and self._silent >= self.dead_rounds:
                self._stop(inputs, [row["completion"] for row in rows])

        def _stop(self, inputs: list[dict], completions: list[str]) -> None:
            table = rewards.doctor(from_columns(_columns(inputs)), completions)
            raise DeadReward(
                f"step {self.state.global_step}: {self._silent} sampling rounds without a group "
                f"whose rewards differ; {rewards.dead(table)}. The doctor on the last round:\n"
                + "\n".join(", ".join(f"{k} {v}" for k, v in row.items()) for row in table)
            )

        def _trace_rows(self, inputs: list[dict], output: dict[str, Any]) -> list[dict[str, Any]]:
            """One row a rollout of this process: who, what, how scored; never pixels."""
            rank, n = self.accelerator.process_index, len(inputs)
            world = self.accelerator.num_processes

            def local(gathered: Any) -> list:  # TRL's logs hold the rows of all processes
                return list(gathered)[-n * world :][rank * n : (rank + 1) * n]

            stops = self.model.generation_config.eos_token_id
            stops = set(stops if isinstance(stops, list) else [stops])
            columns = zip(
                inputs,
                output["completion_ids"].tolist(),
                output["completion_mask"].sum(1).tolist(),
                output["advantages"].tolist(),
                local(self._logs["rewards"]["mixed_reward"]),
                local(self._logs["extra"]["reason"]),
                strict=True,
            )
            return [
                self._trace_row(example, ids[:length], stops)
                | {"advantage": advantage, "reward": reward, "reason": reason}
                for example, ids, length, advantage, reward, reason in columns
            ]

        def _trace_row(self, example: dict, ids: list[int], stops: set[int]) -> dict[str, Any]:
            raw = self.processing_class.decode(ids[:-1] if ids and ids[-1] in stops else ids)
            completion = self.processing_class.decode(ids, skip_special_tokens=True)
            return self.stamp | {
                "sampling_round": self._sampling_round(),
                "optimizer_step": self.state.global_step,
                "record_id": example["id"],
                "source": example["source"],
                "part": example["reward"],
                "image": example["picture"],  # the column `image` is a path of this machine
                "completion": completion,
                "completion_tokens": len(ids),
                "clipped": not ids or ids[-1] not in stops,
                "suspicious": kinds(raw, example["question"], example["reward"]),
                **step_counts(completion, example["meta"].get("scene")),
            }

        def _sampling_round(self) -> int:
            """Count sampling rounds since the start of the run, interruptions included."""
            per_step = self.args.gradient_accumulation_steps  # micro-batches
            done = self.state.global_step * per_step + self._step % per_step
            return done // (self.args.steps_per_generation * self.num_iterations)

    return TracingGRPOTrainer


def _columns(rows: list[dict[str, Any]]) -> dict[str, list]:
    """Return dataset rows as TRL hands them to rewards: a list a column."""
    return {name: [row[name] for row in rows] for name in rows[0]}
