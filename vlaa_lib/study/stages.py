"""The study's stages, from data to answers: each builds its artefact in the run folder once.

Notebooks call these functions; a notebook run alone builds the earlier artefacts that it needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlaa_lib import ROOT, VlaaError, folders, profiles, records
from vlaa_lib.folders import write_csv
from vlaa_lib.profiles import MODELS, RUNS, Settings
from vlaa_lib.records import Record
from vlaa_lib.sources import fetch
from vlaa_lib.sources.fetch import split_file as split

from .artefacts import once, origin

if TYPE_CHECKING:
    from vlaa_lib.models import Policy
    from vlaa_lib.pocket.microworld.narrator import Rates

Rows = list[dict[str, Any]]
MARK = ".vlaa_run"  # in a run folder


def folder(cfg: Settings, run_dir: str | Path | None = None) -> Path:
    """Return the run folder: the one given, or `runs/<profile>` for a notebook run alone.

    Raises:
        VlaaError: it holds other files than a run's, which would stand among them or be replaced.
    """
    path = ROOT / (run_dir or f"runs/{cfg.profile}")
    if not (path / MARK).is_file():
        if path.is_dir() and any(held.name[0] != "." for held in path.iterdir()):
            raise VlaaError(
                f"{path}: holds other files than a run's, as there is no {MARK} in it; give a new "
                f"or an empty folder as --run-dir, or add that file to a run of an older release"
            )
        folders.write_text(path / MARK, "A run of vlaa_lib; what it needs is built in here.\n")
    (path / "results").mkdir(exist_ok=True)
    return path


# --- data ----------------------------------------------------------------------------------------


def world(cfg: Settings, run: Path, split: str) -> Path:
    """Write the micro-world records of `train` (raw material) or `test` (held out)."""
    from vlaa_lib.pocket import microworld

    count = cfg.data.construct_per_source if split == "train" else cfg.data.eval_per_source
    settings = {"sources": cfg.data.sources, "count": count, "seed": cfg.seed}
    return once(
        run / "world" / split,
        settings,
        lambda path: microworld.write_split(path, cfg.data.sources, split, count, cfg.seed),
    )


def rates(cfg: Settings) -> Rates:
    """Return how often the local teacher's captions and reasoning go wrong."""
    from vlaa_lib.pocket.microworld.narrator import Rates

    t = cfg.teacher
    return Rates(t.omit, t.confuse, t.miscount, t.hesitate, t.waver)


def pictures(cfg: Settings, run: Path) -> Path:
    """Return the image root of what is trained on."""
    return ROOT / cfg.data.folder / "images" if cfg.data.folder else run / "world/train/images"


def dataset(cfg: Settings, run: Path) -> Path:
    """Construct the dataset with the local teacher: `sft.jsonl`, `rl.jsonl`, drops and counts.

    With `data.folder` it is that folder, as it is: of a construction, or of the released dataset.

    Raises:
        FileNotFoundError: `data.folder` lacks one of the two splits.
    """
    from vlaa_lib import construct, pocket

    if cfg.data.folder:
        given = ROOT / cfg.data.folder
        for name in fetch.SPLITS:
            if not (file := split(given, name)).is_file():
                raise FileNotFoundError(
                    f"{file}: not there; fetch the released dataset or construct one first "
                    "(data/CONSTRUCT.md), or set data.folder"
                )
        return given
    raw = world(cfg, run, "train")

    def build(path: Path) -> None:
        made = records.load(raw / "records.jsonl", raw / "images").records
        scenes = pocket.scenes_of(made, raw / "images")
        with pocket.serve_teacher(scenes, rates(cfg)) as base_url:
            limits = construct.Limits(concurrency=cfg.teacher.concurrency)
            result = construct.run(made, raw / "images", base_url, path, limits=limits)
        write_csv(run / "results" / "construct_counts.csv", result.counts)

    return once(run / "dataset", {"rates": asdict(rates(cfg))} | origin(raw), build)


def _take(
    cfg: Settings, run: Path, name: str, per_source: int, out: Path | None = None
) -> list[Record]:
    """Load at most `per_source` records of each source of a split; rejects are printed, kept."""
    from vlaa_lib import rewards

    taken: dict[str, list[Record]] = {}
    file = split(dataset(cfg, run), name)
    for record in rewards.usable(file, pictures(cfg, run), out, any_open=True):
        taken.setdefault(record.source, []).append(record)
    return [record for group in taken.values() for record in group[:per_source]]


def perplexity(cfg: Settings, run: Path) -> Path:
    """Score traces of the SFT split under the policy that training starts from (paper §2).

    Returns:
        `results/perplexity.csv`, one row a trace.
    """
    from vlaa_lib import subsets

    data, table = dataset(cfg, run), run / "results" / "perplexity.csv"

    def build(path: Path) -> None:
        made = _take(cfg, run, "sft", cfg.data.scored_per_source)
        start = policy(cfg, cfg.model.policy)
        scores = {"instruct": subsets.score(start, made, pictures(cfg, run), path)}
        write_csv(table, subsets.average(made, scores)[0])

    settings = {"model": asdict(cfg.model), "per_source": cfg.data.scored_per_source}
    once(run / "perplexity", settings | origin(data), build)
    return table


# --- models --------------------------------------------------------------------------------------


def model_path(cfg: Settings, run: Path, model: str) -> Path | str:
    """Return a model's folder, training it first where it is not there.

    Raises:
        VlaaError: unknown model name.
    """
    if model not in MODELS:
        raise VlaaError(f"unknown model {model!r}; use one of {', '.join(MODELS)}")
    if model in ("base", "instruct"):
        return cfg.model.base if model == "base" else cfg.model.policy
    return sft(cfg, run) if model == "sft" else grpo(cfg, run, model)


def policy(cfg: Settings, path: Path | str) -> Policy:
    """Load a checkpoint to read or answer with, at the profile's picture sizes."""
    from vlaa_lib import models

    m = cfg.model
    return models.load_policy(path, "full", m.max_pixels, m.min_pixels, m.dtype)


def sft(cfg: Settings, run: Path) -> Path:
    """Fine-tune the profile's policy on the SFT split."""
    data, images = dataset(cfg, run), pictures(cfg, run)

    def build(path: Path) -> None:
        from vlaa_lib import rewards, train
        from vlaa_lib.train import launch

        file = split(data, "sft")
        if cfg.launch == profiles.HERE:
            made = list(rewards.usable(file, images, path, any_open=True))
            train.sft(cfg, made, images, path)
        else:
            launch.train(cfg, "sft", file, images, path)
        publish(run, "sft_log", path / "training_log.csv")

    settings = {"sft": asdict(cfg.sft), "model": asdict(cfg.model), "seed": cfg.seed}
    return once(run / "models" / "sft", settings | origin(data), build)


def grpo(cfg: Settings, run: Path, name: str = "grpo") -> Path:
    """Train with GRPO on the RL split, from the policy (`grpo`) or from SFT (`sft_grpo`)."""
    data = dataset(cfg, run)
    start = model_path(cfg, run, RUNS[name]) if RUNS[name] else cfg.model.policy

    def build(path: Path) -> None:
        reinforce(cfg, run, path, start)
        publish(run, f"watch_{name}", path / "watch.csv")

    settings = {"grpo": asdict(cfg.grpo), "model": asdict(cfg.model), "seed": cfg.seed}
    settings |= {"start": origin(start), "per_source": cfg.data.rl_per_source}
    return once(run / "models" / name, settings | origin(data), build)


def reinforce(cfg: Settings, run: Path, out: Path, start: Path | str) -> None:
    """Train with GRPO on the profile's share of the RL split into `out`, and publish its log."""
    from vlaa_lib import evaluate, train
    from vlaa_lib.process import prm
    from vlaa_lib.train import launch

    images, made = pictures(cfg, run), _take(cfg, run, "rl", cfg.data.rl_per_source, out)
    records.write(made, out / "records.jsonl")  # what it was trained on, for whoever reads rollouts
    held_out = world(cfg, run, "test") if cfg.grpo.held_out_rounds else None
    if cfg.launch == profiles.HERE:
        scorer = prm.chosen_reward(cfg, images)
        asker = evaluate.held_out_asker(cfg, held_out)
        train.grpo(cfg, made, images, out, start, process_reward=scorer, held_out=asker)
    else:
        launch.train(cfg, "grpo", out / "records.jsonl", images, out, start, held_out)
    publish(run, f"grpo_{out.name}", out / "training_log.csv")


def publish(run: Path, name: str, table: Path) -> None:
    """Put a training's table among the results."""
    folders.write_text(run / "results" / f"{name}.csv", folders.read_text(table))


# --- answers -------------------------------------------------------------------------------------


def evaluation(cfg: Settings, run: Path, model: str) -> Rows:
    """Answer the held-out records with a model, and with blank pictures; return scored rows."""
    path, data = model_path(cfg, run, model), world(cfg, run, "test")
    return answered(cfg, path, run / "evaluation" / model, data, model)


def benchmark_files(cfg: Settings, run: Path) -> Path:
    """Write the six micro benchmarks as `NAME.tsv`; return their folder."""
    from vlaa_lib.pocket.microworld import benchmarks

    def build(path: Path) -> None:
        for name in benchmarks.BENCHMARKS:
            benchmarks.write_tsv(name, path / f"{name}.tsv", cfg.data.bench_rows, cfg.seed)

    settings = {"rows": cfg.data.bench_rows, "seed": cfg.seed}
    return once(run / "benchmarks", settings, build)


def benchmarks(cfg: Settings, run: Path, model: str) -> Rows:
    """Answer the six micro benchmarks with a model, and with blank pictures; return scored rows.

    The rows are what `evaluate --benchmark` writes, with the columns model and blank; see
    `evaluate.stats` for tables of them.
    """
    path, data = model_path(cfg, run, model), benchmark_files(cfg, run)
    return answered(cfg, path, run / "evaluation" / f"{model}-micro", data, model)


def answered(
    cfg: Settings, path: Path | str, into: Path, data: Path, model: str,
    blanks: Sequence[bool] = (False, True),
) -> Rows:
    """Let the checkpoint at `path` answer what is asked in the folder `data`; return scored rows.

    Args:
        data: of the held-out records, or of the micro benchmarks.
        model: its name in the rows.
    """

    def build(out: Path) -> None:
        from vlaa_lib import evaluate
        from vlaa_lib.evaluate import prompting
        from vlaa_lib.evaluate.benchmarks import held_out, read
        from vlaa_lib.pocket.microworld.benchmarks import BENCHMARKS

        images = data / "images"
        if (data / "records.jsonl").is_file():
            asked = [held_out(records.load(data / "records.jsonl", images).records, images)]
        else:
            asked = [read(name, data / f"{name}.tsv", images) for name in BENCHMARKS]
        e, m = cfg.evaluate, cfg.model
        sizes = {"max_pixels": m.max_pixels, "min_pixels": m.min_pixels}
        chosen = prompting.settings(max_new_tokens=e.max_new_tokens, **sizes)
        rows = evaluate.run(policy(cfg, path), asked, chosen, out, model, e.batch, blanks)
        folders.write_rows(out / "rows.jsonl", rows)

    settings = {"evaluate": asdict(cfg.evaluate), "model": origin(path)} | origin(data)
    return folders.whole_lines(once(into, settings, build) / "rows.jsonl")


def answers(cfg: Settings, run: Path, model: str) -> None:
    """Let a model answer the held-out records and the micro benchmarks."""
    evaluation(cfg, run, model)
    benchmarks(cfg, run, model)


def matrix(
    profile: str, seeds: list[int], names: list[str], run_dir: str | Path | None = None
) -> Rows:
    """Build and evaluate models over several seeds; write and return `results/matrix.csv`.

    One row a model and seed, over all held-out records of that seed; what stays the same over the
    seeds is the starting checkpoint.
    """
    from vlaa_lib import evaluate

    table: Rows = []
    home = folder(profiles.load(profile), run_dir or f"runs/{profile}-matrix")
    for seed in seeds:
        cfg = profiles.load(profile, seed=seed)
        run = folder(cfg, home / f"seed-{seed}")
        for name in names:
            rows = evaluate.summary(evaluation(cfg, run, name), cfg.evaluate.bootstrap)
            table += [{"seed": seed, **row} for row in rows if row["source"] == "all"]
            write_csv(home / "results" / "matrix.csv", table)
    return table
