"""The commands of `process`: sample a pool, score its steps, compare ways of choosing, train."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer import Option

from vlaa_lib import folders
from vlaa_lib import options as o
from vlaa_lib.options import loaded, one_of, show
from vlaa_lib.prompts import MAX_NEW_TOKENS
from vlaa_lib.tables import read

process = typer.Typer(no_args_is_help=True)
SHOWN = ("generator", "scorer", "aggregator", "n", "questions", "accuracy", "low", "high")


@process.command()
def pool(
    records: o.Records,
    images: o.Images,
    model: o.Model,
    out: o.Out,
    generator: Annotated[str | None, Option(help="its name in tables")] = None,
    candidates: Annotated[int, Option(help="solutions of a question")] = 16,
    temperature: float = 0.8,
    seed: o.Seed = 0,
    batch: int = 64,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> None:
    """Sample solutions of each question; resumes."""
    from vlaa_lib import models, rewards

    from . import best_of_n, pools

    made, name = list(rewards.usable(records, images)), generator or Path(model).name
    given = models.load_policy(model), made, images, out, name, candidates, temperature, seed
    found = pools.sample(*given, batch=batch, max_new_tokens=max_new_tokens)
    show(best_of_n.table([found], {}, [n for n in pools.SIZES if n <= found.reach], resamples=200))
    print(f"{len(found.candidates)} questions of {name} in {out}")


@process.command("judge")
def judge_steps(
    records: o.Records,
    images: o.Images,
    pools: Annotated[list[str], Option(metavar="FOLDER ...")],
    out: o.OutFile,
    endpoints: o.Endpoints = None,
    model: Annotated[str | None, Option(help="checkpoint that judges")] = None,
    prm: Annotated[str | None, Option(help="folder of a ViLPRM that scores")] = None,
    truth: Annotated[Literal["steps", "steps+answer"] | None, Option(help="the scenes")] = None,
    view: Literal["step", "prefix", "context"] = "context",
    concurrency: o.Concurrency = 8,
    max_cost: o.MaxCost = None,
) -> None:
    """Score the steps of pools; finished calls are kept."""
    one_of(endpoints=endpoints, model=model, prm=prm, truth=truth)
    from vlaa_lib import llm, models, rewards

    from . import scorers
    from .pools import load

    made = list(rewards.usable(records, images))
    given = Path(out).parent / "judge.sqlite", images, view
    if truth:
        name = f"truth of {truth}"
        scorer: Any = partial(scorers.step_truth, with_answer=truth == "steps+answer")
    elif prm:
        from . import prm as vilprm

        name, scorer = f"ViLPRM {Path(prm).name}", vilprm.scorer(vilprm.load(prm), images)
    elif model:
        scorer = scorers.policy_judge(models.load_policy(model), *given)
        name = scorer.name
    else:
        endpoint = llm.read_endpoints(endpoints, {"judge": llm.Endpoint("judge")})["judge"]
        limits = llm.Limits(concurrency, max_cost=max_cost)
        scorer = scorers.endpoint_judge(endpoint, *given, limits)
        name = scorer.name
    found = scorers.score_pools(scorer, map(load, pools), made)
    scorers.write(out, name, found)
    if isinstance(scorer, scorers.StepJudge):
        show([{"no score": k, "steps": n} for k, n in scorer.unusable.most_common()])
        print(f"{scorer.failure_rate:.1%} of {scorer.asked} steps have no score")
    print(f"scores of {len(found)} candidates by {name} in {out}")


@process.command("best-of-n")
def best_of_n(
    pools: Annotated[list[str], Option(metavar="FOLDER ...", help="one a generator")],
    out: o.OutFile,
    scores: Annotated[list[str], Option(metavar="FILE ...", help="of `process judge`")] = [],
    sizes: Annotated[list[int], Option(metavar="N ...")] = [2, 4, 8, 16],
) -> None:
    """Compare ways of choosing among candidates."""
    from . import scorers
    from .best_of_n import table
    from .pools import load

    rows = table([load(folder) for folder in pools], scorers.read(*scores), sizes)
    folders.write_csv(out, rows)
    largest = max((row["n"] for row in rows), default=0)
    show([{key: row[key] for key in SHOWN} for row in rows if row["n"] == largest])
    print(f"{len(rows)} rows in {out}")


@process.command()
def search(
    records: o.Records,
    images: o.Images,
    out: o.Out,
    model: Annotated[str | None, Option(help="default: the profile's policy")] = None,
    n: Annotated[int | None, Option(min=1, help="take the first N records")] = None,
    profile: o.Profile = "laptop",
    changes: o.Set = [],
) -> None:
    """Search trees of steps, write scored processes; resumes."""
    cfg = loaded(profile, changes)
    from vlaa_lib import models, rewards

    from .search import rows, run, statistics

    made, m = list(rewards.usable(records, images, out))[:n], cfg.model
    policy = models.load_policy(model or m.policy, "full", m.max_pixels, m.min_pixels)
    trees = run(policy, made, images, out, cfg.search, cfg.seed)
    show(statistics(trees))
    print(f"{len(rows(trees))} rows of {len(trees)} questions in {Path(out) / 'processes.json'}")


@process.command("train-prm")
def train_prm(
    rows: Annotated[str, Option(help="processes.json of a search, or ViLReward-73K")],
    images: o.Images,
    out: o.Out,
    start: o.Start = None,
    profile: o.Profile = "laptop",
    changes: o.Set = [],
) -> None:
    """Train a ViLPRM on scored processes; resumes."""
    cfg = loaded(profile, changes)
    from . import prm
    from .search import read_processes

    found = read_processes(rows, images)
    for reject in found.rejects:
        print(f"rejected: {reject}")
    log = prm.train(cfg, found.rows, images, out, start)
    show([{key: row[key] for key in ("step", "loss") if key in row} for row in log])
    for name in ("held_out", "calibration"):
        show(read(Path(out) / f"{name}.csv"))
