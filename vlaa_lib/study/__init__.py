"""The study: stages built once, notebooks run by papermill, the report.

    stages.sft(cfg, run)               # in a notebook: the stage, built if it is not there
    study.build(cfg, run, "model:sft") # the same by its name: `python -m vlaa_lib stage model:sft`
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from vlaa_lib import VlaaError


def named(seeds: int) -> dict[str, Callable[..., Any]]:
    """Return every stage by its name, as a function of settings and run folder."""
    from . import process_stages as process
    from . import stages

    found: dict[str, Callable[..., Any]] = {
        "dataset": stages.dataset, "perplexity": stages.perplexity,
        "benchmarks": stages.benchmark_files,
    }  # fmt: skip
    for model in stages.MODELS:
        found[f"model:{model}"] = partial(stages.model_path, model=model)
        found[f"answers:{model}"] = partial(stages.answers, model=model)
        found[f"pool:{model}"] = partial(process.pool, generator=model)
    found |= {"search": process.search, "scores": process.scores}
    found |= {f"vilprm:{seed}": partial(process.vilprm, seed=seed) for seed in range(seeds)}
    arms = (process.ANSWERS, process.STEPS)
    return found | {f"rewarded:{arm}": partial(process.arm, name=arm) for arm in arms}


def build(cfg: Any, run: Path, name: str) -> Any:
    """Build a stage by its name, and what it needs; return what its function returns.

    Raises:
        VlaaError: unknown name.
    """
    known = named(cfg.process.seeds)
    if name not in known:
        raise VlaaError(f"unknown stage {name!r}; use one of {', '.join(known)}")
    return known[name](cfg, run)
