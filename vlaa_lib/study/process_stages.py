"""The stages of process rewards (ViLBench): pools, search, ViLPRM, best-of-N, a reward of steps."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from vlaa_lib import folders, records
from vlaa_lib.folders import write_csv
from vlaa_lib.process import best_of_n as best
from vlaa_lib.process import first_error, pools, scorers
from vlaa_lib.process.pools import Pool
from vlaa_lib.process.scorers import Scorer, Scores
from vlaa_lib.profiles import Settings
from vlaa_lib.records import Record, spread

from . import stages
from .artefacts import at_once, once, origin
from .stages import Rows

JUDGE = "untrained judge"
BEFORE, ANSWERS, STEPS = "before", "answers", "answers and steps"  # arms of the experiment


def asked(cfg: Settings, run: Path) -> tuple[list[Record], Path]:
    """Return the held-out records that have pools, and their image root."""
    held_out = stages.world(cfg, run, "test")
    made = records.load(held_out / "records.jsonl", held_out / "images").records
    return spread(made, cfg.process.pool_questions), held_out / "images"


# --- candidates and their scores -----------------------------------------------------------------


def pool(cfg: Settings, run: Path, generator: str) -> Pool:
    """Sample candidates of each held-out question from one model of the study."""
    model, s, p = stages.model_path(cfg, run, generator), cfg.search, cfg.process

    def build(path: Path) -> None:
        made, images = asked(cfg, run)
        given = p.candidates, s.temperature, cfg.seed
        sizes = {"batch": s.batch, "max_new_tokens": s.max_new_tokens}
        pools.sample(stages.policy(cfg, model), made, images, path, generator, *given, **sizes)

    settings = {"questions": p.pool_questions, "candidates": p.candidates, "search": asdict(s)}
    settings |= {"model": origin(model), "seed": cfg.seed}
    settings |= origin(stages.world(cfg, run, "test"))
    return pools.load(once(_pool_folder(run, generator), settings, build))


def _pool_folder(run: Path, generator: str) -> Path:
    return run / "process" / "pools" / generator


def pools_of(cfg: Settings, run: Path) -> list[Pool]:
    """Return a pool of each generator of the profile."""
    return at_once(pool, cfg, run, cfg.process.generators)


def scores(cfg: Settings, run: Path) -> dict[str, Scores]:
    """Score every candidate of every pool, by each ViLPRM and by the scenes' truth."""
    found, trained = pools_of(cfg, run), vilprms(cfg, run)

    def build(path: Path) -> None:
        from vlaa_lib.process import prm

        made, images = asked(cfg, run)
        for seed, model in enumerate(trained):
            scorer = prm.scorer(prm.load(model), images)
            _score(path / f"{seed}.jsonl", f"ViLPRM {seed}", scorer, found, made)
        with_answer = partial(scorers.step_truth, with_answer=True)
        _score(path / "truth.jsonl", "truth of steps", scorers.step_truth, found, made)
        _score(path / "truth_answer.jsonl", "truth of steps and answer", with_answer, found, made)

    pooled = [origin(_pool_folder(run, p.generator)) for p in found]
    settings = {"pools": pooled, "models": [origin(path) for path in trained]}
    path = once(run / "process" / "scores", settings, build)
    return scorers.read(*sorted(path.glob("*.jsonl")))


def _score(
    file: Path, name: str, scorer: Scorer, found: list[Pool], made: list[Record]
) -> None:
    scorers.write(file, name, scorers.score_pools(scorer, found, made))


def best_of_n(cfg: Settings, run: Path) -> Rows:
    """Compare all ways of choosing a candidate; also `results/best_of_n.csv`."""
    rows = _table(cfg, pools_of(cfg, run), scores(cfg, run))
    write_csv(run / "results" / "best_of_n.csv", rows)
    return rows


def _table(cfg: Settings, found: list[Pool], known: dict[str, Scores]) -> Rows:
    sizes = [n for n in pools.SIZES if n <= cfg.process.candidates]
    return best.table(found, known, sizes, resamples=cfg.evaluate.bootstrap)


def first_errors(cfg: Settings, run: Path) -> Rows:
    """Measure who finds the first false step of the candidates; also `results/first_error.csv`."""
    known = scores(cfg, run)
    rows = first_error.table(known, known["truth of steps and answer"])
    write_csv(run / "results" / "first_error.csv", rows)
    return rows


def judged(cfg: Settings, run: Path) -> tuple[Rows, Rows]:
    """Let the policy judge the candidates of a few questions, from 1 to 5, as it is.

    Returns:
        Best-of-N on these questions by every scorer, and what the judge's replies were; also
        `results/best_of_n_judged.csv`. Both are empty where `process.judged` is 0.
    """
    made, images = asked(cfg, run)
    made, s = spread(made, cfg.process.judged), cfg.search
    if not made:
        return [], []
    found = [one.of(r.id for r in made) for one in pools_of(cfg, run)]

    def build(path: Path) -> None:
        given = stages.policy(cfg, cfg.model.policy), path / "judge.sqlite", images
        grader = scorers.policy_judge(*given, batch=s.batch, max_new_tokens=s.max_new_tokens)
        _score(path / "scores.jsonl", JUDGE, grader, found, made)
        replies = {"a score": grader.asked - sum(grader.unusable.values())} | grader.unusable
        rows = [{"reply": reply, "steps": n} for reply, n in replies.items()]
        folders.write_json(path / "replies.json", rows)

    settings = {"questions": [r.id for r in made], "search": asdict(s), "model": asdict(cfg.model)}
    settings |= {"pools": [origin(_pool_folder(run, p.generator)) for p in found]}
    path = once(run / "process" / "judge", settings, build)
    rows = _table(cfg, found, scores(cfg, run) | scorers.read(path / "scores.jsonl"))
    write_csv(run / "results" / "best_of_n_judged.csv", rows)
    return rows, folders.read_json(path / "replies.json", list)


# --- ViLPRM --------------------------------------------------------------------------------------


def search(cfg: Settings, run: Path) -> Path:
    """Search trees of questions of the RL split: `trees/`, `processes.json`, `statistics.csv`.

    Questions that no rule can score are left out, and named.
    """
    data, images = stages.dataset(cfg, run), stages.pictures(cfg, run)

    def build(path: Path) -> None:
        from vlaa_lib import rewards
        from vlaa_lib.process import search as tree_search

        asked = rewards.usable(stages.split(data, "rl"), images, path)
        made = list(rewards.pictured(spread(asked, cfg.process.questions), images))
        searcher = stages.policy(cfg, cfg.model.policy)
        tree_search.run(searcher, made, images, path, cfg.search, cfg.seed)
        stages.publish(run, "search", path / "statistics.csv")

    settings = {"questions": cfg.process.questions, "search": asdict(cfg.search)}
    settings |= {"model": asdict(cfg.model), "seed": cfg.seed} | origin(data)
    return once(run / "process" / "search", settings, build)


def vilprm(cfg: Settings, run: Path, seed: int = 0) -> Path:
    """Train a ViLPRM on what the search found."""
    found, images = search(cfg, run), stages.pictures(cfg, run)

    def build(path: Path) -> None:
        from vlaa_lib.process import prm
        from vlaa_lib.process.search import read_processes

        rows = read_processes(found / "processes.json", images, cfg.model.max_pixels).rows
        prm.train(replace(cfg, seed=seed), rows, images, path)

    settings = {"prm": asdict(cfg.prm), "model": asdict(cfg.model), "seed": seed}
    return once(run / "process" / f"vilprm-{seed}", settings | origin(found), build)


def vilprms(cfg: Settings, run: Path) -> list[Path]:
    """Return a ViLPRM of each seed; their held-out measures are `results/vilprm.csv`."""
    made = at_once(vilprm, cfg, run, range(cfg.process.seeds))
    cards = [folders.read_json(path / "vilprm.json") for path in made]
    rows = [{"seed": seed} | card["held_out"] for seed, card in enumerate(cards)]
    write_csv(run / "results" / "vilprm.csv", rows)
    return made


# --- ViLPRM as a reward --------------------------------------------------------------------------


def rewarded(cfg: Settings, run: Path) -> Rows:
    """Go on with GRPO from the `grpo` model, with and without ViLPRM as a reward of steps.

    Returns:
        A row each of the model before and the two after, from held-out records answered greedily:
        see `compared`; also `results/process_reward.csv`. Empty where `process.reward_rounds` is 0.
    """
    if not cfg.process.reward_rounds:
        return []
    models = [stages.grpo(cfg, run), *at_once(arm, cfg, run, (ANSWERS, STEPS))]
    told, held_out = {}, stages.world(cfg, run, "test")
    for name, model in zip((BEFORE, ANSWERS, STEPS), models, strict=True):
        into = run / "process" / "answers" / name.replace(" ", "_")
        told[name] = stages.answered(cfg, model, into, held_out, name, blanks=[False])
    made = records.load(held_out / "records.jsonl").records
    rows = compared(told, made, cfg.evaluate.bootstrap)
    write_csv(run / "results" / "process_reward.csv", rows)
    return rows


def arm(cfg: Settings, run: Path, name: str) -> Path:
    """Go on with GRPO from the `grpo` model; name: `ANSWERS` or, with ViLPRM's reward, `STEPS`."""
    weight = {ANSWERS: 0.0, STEPS: cfg.process.reward_weight}[name]
    start, data = stages.grpo(cfg, run), stages.dataset(cfg, run)
    scored_by = vilprm(cfg, run) if weight else ""
    steps = cfg.process.reward_rounds * cfg.grpo.steps_per_round
    g = replace(cfg.grpo, max_steps=steps, process_weight=weight, process_model=str(scored_by))

    def build(path: Path) -> None:
        stages.reinforce(replace(cfg, grpo=g), run, path, start)

    settings = {"grpo": asdict(g), "start": origin(start), "seed": cfg.seed}
    settings |= {"scored_by": origin(scored_by)} | origin(data)
    return once(run / "process" / "rewarded" / name.replace(" ", "_"), settings, build)


def compared(told: dict[str, Rows], made: list[Record], resamples: int = 1000) -> Rows:
    """Compare what arms answered: accuracy, format, false steps, and how many there are.

    `false_share` is the mean over answers with a checkable step; `fewer_false` is how much lower it
    is than the `ANSWERS` arm's on the questions where both have one, with its bootstrap interval.
    """
    from vlaa_lib import traces
    from vlaa_lib.evaluate import bootstrap

    scenes = {record.id: record.meta.get("scene") for record in made}
    shares: dict[str, dict[str, float]] = {}
    for name, rows in told.items():
        measured = traces.measured(rows, made)
        shares[name] = {row["record_id"]: share for row in measured
                        if (share := row["false_share"]) is not None}  # fmt: skip
    table: Rows = []
    for name, rows in told.items():
        whole = traces.summarise((row["completion"], scenes[row["record_id"]]) for row in rows)
        gain = [shares[ANSWERS][i] - share for i, share in shares[name].items()
                if i in shares[ANSWERS]]  # fmt: skip
        low, high = bootstrap(gain, resamples)
        row = {"reward": name, "accuracy": sum(r["correct"] for r in rows) / max(1, len(rows))}
        kept = ("n", "format_rate", "mean_words", "mean_steps", "checked_steps")
        row |= {key: whole.get(key) for key in kept}
        row |= {"false_share": sum(shares[name].values()) / max(1, len(shares[name]))}
        row |= {"fewer_false": sum(gain) / max(1, len(gain)), "low": low, "high": high}
        table.append(row)
    return table
