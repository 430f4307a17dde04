"""The command line of `process`: sample a pool, score its steps, compare ways of choosing."""

from __future__ import annotations

import csv
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from vlaa_lib import folders, rewards
from vlaa_lib.llm import Endpoint, Limits, read_endpoints

from . import best_of_n, pools, scorers

Show = Callable[[list[dict[str, Any]]], None]
SHOWN = ("generator", "scorer", "aggregator", "n", "questions", "accuracy", "low", "high")


def main(args: Namespace, show: Show) -> int:
    """Run `python -m vlaa_lib process`."""
    actions = {"pool": _pool, "judge": _judge, "best-of-n": _best_of_n}
    (actions | {"search": _search, "train-prm": _train_prm})[args.what](args, show)
    return 0


def _pool(args: Namespace, show: Show) -> None:
    from vlaa_lib import models

    made = list(rewards.usable(args.records, args.images))
    generator = args.generator or Path(args.model).name
    numbers = args.candidates, args.temperature, args.seed
    sizes = {"batch": args.batch, "max_new_tokens": args.max_new_tokens}
    policy = models.load_policy(args.model)
    pool = pools.sample(policy, made, args.images, args.out, generator, *numbers, **sizes)
    show(best_of_n.table([pool], {}, [n for n in pools.SIZES if n <= pool.reach], resamples=200))
    print(f"{len(pool.candidates)} questions of {generator} in {args.out}")


def _judge(args: Namespace, show: Show) -> None:
    made = list(rewards.usable(args.records, args.images))
    name, scorer = _scorer(args)
    parts = [scorers.score_pool(scorer, pools.load(folder), made) for folder in args.pools]
    found = {key: values for part in parts for key, values in part.items()}
    scorers.write(args.out, name, found)
    if isinstance(scorer, scorers.StepJudge):
        show([{"no score": k, "steps": n} for k, n in scorer.unusable.most_common()])
        print(f"{scorer.failure_rate:.1%} of {scorer.asked} steps have no score")
    print(f"scores of {len(found)} candidates by {name} in {args.out}")


def _scorer(args: Namespace) -> tuple[str, scorers.Scorer]:
    """Return who scores, and its name."""
    if args.truth:
        with_answer = args.truth == "steps+answer"
        return f"truth of {args.truth}", partial(scorers.step_truth, with_answer=with_answer)
    given = Path(args.out).parent / "judge.sqlite", args.images, args.view
    if args.prm:
        from . import prm

        return f"ViLPRM {Path(args.prm).name}", prm.scorer(prm.load(args.prm), args.images)
    if args.model:
        from vlaa_lib import models

        made = scorers.policy_judge(models.load_policy(args.model), *given)
    else:
        endpoint = read_endpoints(args.endpoints, {"judge": Endpoint("judge")})["judge"]
        limits = Limits(args.concurrency, max_cost=args.max_cost)
        made = scorers.endpoint_judge(endpoint, *given, limits)
    return made.name, made


def _best_of_n(args: Namespace, show: Show) -> None:
    scores = scorers.read(*args.scores)
    found = [pools.load(folder) for folder in args.pools]
    rows = best_of_n.table(found, scores, args.sizes)
    folders.write_csv(args.out, rows)
    largest = max((row["n"] for row in rows), default=0)
    show([{key: row[key] for key in SHOWN} for row in rows if row["n"] == largest])
    print(f"{len(rows)} rows in {args.out}")


def _search(args: Namespace, show: Show) -> None:
    from vlaa_lib import models

    from . import search

    cfg, out = args.cfg, Path(args.out)
    made = list(rewards.usable(args.records, args.images, out))[: args.n]
    m = cfg.model
    policy = models.load_policy(args.model or m.policy, "full", m.max_pixels, m.min_pixels)
    trees = search.run(policy, made, args.images, out, cfg.search, cfg.seed)
    show(search.statistics(trees))
    print(f"{len(search.rows(trees))} rows of {len(trees)} questions in {out / 'processes.json'}")


def _train_prm(args: Namespace, show: Show) -> None:
    from . import prm, search

    found = search.read_processes(args.rows, args.images)
    for reject in found.rejects:
        print(f"rejected: {reject}")
    log = prm.train(args.cfg, found.rows, args.images, args.out, args.start)
    show([{key: row[key] for key in ("step", "loss") if key in row} for row in log])
    for name in ("held_out", "calibration"):
        with (Path(args.out) / f"{name}.csv").open(encoding="utf-8", newline="") as stream:
            show(list(csv.DictReader(stream)))
