"""The study's stages: each builds its artefact in the run folder once, and names it ever after.

Notebooks call these; a notebook run alone builds the earlier artefacts that it needs. A stage is
done when its `done.json` exists with the settings it was built from; anything else is rebuilt.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from vlaa_lib import ROOT, folders, pocket, records
from vlaa_lib.folders import write_csv
from vlaa_lib.pocket import microworld
from vlaa_lib.pocket.microworld.narrator import Rates
from vlaa_lib.profiles import MODELS, RUNS, Settings
from vlaa_lib.sources import fetch
from vlaa_lib.sources.fetch import split_file as split

if TYPE_CHECKING:
    from vlaa_lib.models import Policy

looking: ContextVar[bool] = ContextVar("looking", default=False)  # build nothing, only look


class Missing(Exception):
    """A stage that is not built yet; its arguments are those of `once`."""


def folder(cfg: Settings, run_dir: str | Path | None = None) -> Path:
    """Return the run folder: the one given, or `runs/<profile>` for a notebook run alone."""
    path = ROOT / (run_dir or f"runs/{cfg.profile}")
    (path / "results").mkdir(parents=True, exist_ok=True)
    return path


def once(path: Path, settings: dict[str, Any], build: Callable[[Path], None]) -> Path:
    """Build `path` unless its marker says that it was built from these settings."""
    settings = json.loads(json.dumps(settings))  # as it reads back: tuples become lists
    if not _is_done(path, settings):
        if looking.get():
            raise Missing(path, settings, build)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / f".{path.name}.lock"):  # two processes may need the same
            if not _is_done(path, settings):
                _build(path, settings, build)
    return path


def _is_done(path: Path, settings: dict[str, Any]) -> bool:
    done = path / "done.json"
    return done.is_file() and json.loads(done.read_text())["settings"] == settings


def _build(path: Path, settings: dict[str, Any], build: Callable[[Path], None]) -> None:
    done, begun = path / "done.json", path / "begun.json"
    if path.exists() and not (begun.is_file() and json.loads(begun.read_text()) == settings):
        shutil.rmtree(path)  # made from other settings; an unfinished build of ours is continued
    shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    print(f"building {shown} ...", flush=True)
    done.unlink(missing_ok=True)
    folders.write_text(begun, json.dumps(settings, indent=1) + "\n")
    start = time.monotonic()
    build(path)
    seconds = round(time.monotonic() - start, 1)
    folders.write_text(
        done, json.dumps({"settings": settings, "seconds": seconds}, indent=1) + "\n"
    )
    print(f"built {shown} in {seconds} s", flush=True)


def world(cfg: Settings, run: Path, split: str) -> Path:
    """Write the micro-world records of `train` (raw material) or `test` (held out)."""
    count = cfg.data.construct_per_source if split == "train" else cfg.data.eval_per_source
    settings = {"sources": cfg.data.sources, "count": count, "seed": cfg.seed}
    return once(
        run / "world" / split,
        settings,
        lambda path: microworld.write_split(path, cfg.data.sources, split, count, cfg.seed),
    )


def rates(cfg: Settings) -> Rates:
    """Return how often the local teacher's captions and reasoning go wrong."""
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
    from vlaa_lib import construct

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

    settings = {"world": json.loads((raw / "done.json").read_text())["settings"]}
    settings |= {"rates": asdict(rates(cfg))}
    return once(run / "dataset", settings, build)


def _take(path: Path, images: Path, per_source: int) -> list[records.Record]:
    """Load at most `per_source` records of each source, in file order; rejects are printed."""
    from vlaa_lib import rewards

    taken: dict[str, list[records.Record]] = {}
    for record in rewards.usable(path, images, any_open=True):
        taken.setdefault(record.source, []).append(record)
    return [record for group in taken.values() for record in group[:per_source]]


def perplexity(cfg: Settings, run: Path) -> Path:
    """Score traces of the SFT split under the policy that training starts from (paper §2).

    Returns:
        `results/perplexity.csv`, one row a trace.
    """
    from vlaa_lib import subsets

    data, images = dataset(cfg, run), pictures(cfg, run)
    table = run / "results" / "perplexity.csv"

    def build(path: Path) -> None:
        made = _take(split(data, "sft"), images, cfg.data.scored_per_source)
        scores = {"instruct": subsets.score(policy(cfg, cfg.model.policy), made, images, path)}
        write_csv(table, subsets.average(made, scores)[0])

    settings = {"model": asdict(cfg.model), "per_source": cfg.data.scored_per_source}
    once(run / "perplexity", settings | built_from(data), build)
    return table


def sft(cfg: Settings, run: Path) -> Path:
    """Fine-tune the profile's policy on the SFT split."""
    data, images = dataset(cfg, run), pictures(cfg, run)

    def build(path: Path) -> None:
        _train(cfg, "sft", split(data, "sft"), images, path)
        publish(run, "sft_log", path / "training_log.csv")

    settings = {"sft": asdict(cfg.sft), "model": asdict(cfg.model), "seed": cfg.seed}
    return once(run / "models" / "sft", settings | built_from(data), build)


def grpo(cfg: Settings, run: Path, name: str = "grpo") -> Path:
    """Train with GRPO on the RL split, from the policy (`grpo`) or from SFT (`sft_grpo`)."""
    data = dataset(cfg, run)
    start = model_path(cfg, run, RUNS[name]) if RUNS[name] else cfg.model.policy

    def build(path: Path) -> None:
        reinforce(cfg, run, path, start)
        publish(run, f"watch_{name}", path / "watch.csv")

    settings = {"grpo": asdict(cfg.grpo), "model": asdict(cfg.model), "seed": cfg.seed}
    settings |= {"start": str(start), "per_source": cfg.data.rl_per_source}
    return once(run / "models" / name, settings | built_from(data), build)


def reinforce(cfg: Settings, run: Path, out: Path, start: Path | str) -> None:
    """Train with GRPO on the profile's share of the RL split into `out`, and publish its log."""
    images, rl = pictures(cfg, run), out / "records.jsonl"
    given = split(dataset(cfg, run), "rl")
    records.write(_take(given, images, cfg.data.rl_per_source), rl)
    _train(cfg, "grpo", rl, images, out, start)
    publish(run, f"grpo_{out.name}", out / "training_log.csv")


def _train(
    cfg: Settings, method: str, file: Path, images: Path, out: Path, start: Path | str | None = None
) -> None:
    """Train on a file's records in this process, or in those that `cfg.launch` starts."""
    from vlaa_lib import profiles, rewards, train
    from vlaa_lib.train import launch

    if cfg.launch != profiles.HERE:
        launch.train(cfg, method, file, images, out, start)
        return
    given = cfg, list(rewards.usable(file, images, out, any_open=True)), images, out, start
    if method == "sft":
        train.sft(*given)
    else:
        from vlaa_lib.process import prm

        train.grpo(*given, process_reward=prm.chosen_reward(cfg, images))


def publish(run: Path, name: str, table: Path) -> None:
    """Put a training's table among the results."""
    folders.write_text(run / "results" / f"{name}.csv", table.read_text(encoding="utf-8"))


def built_from(path: Path) -> dict[str, Any]:
    """Return what a later stage puts among its settings: those of the stage that it builds on."""
    marker = path / "done.json"  # a folder that the user gave has none
    return {"from": json.loads(marker.read_text())["settings"] if marker.is_file() else str(path)}


def model_path(cfg: Settings, run: Path, model: str) -> Path | str:
    """Return a model's folder, training it first where it is not there.

    Raises:
        ValueError: unknown model name.
    """
    if model not in MODELS:
        raise ValueError(f"unknown model {model!r}; use one of {', '.join(MODELS)}")
    if model in ("base", "instruct"):
        return cfg.model.base if model == "base" else cfg.model.policy
    return sft(cfg, run) if model == "sft" else grpo(cfg, run, model)


def policy(cfg: Settings, path: Path | str) -> Policy:
    """Load a checkpoint to read or answer with, at the profile's picture sizes."""
    from vlaa_lib import models

    m = cfg.model
    return models.load_policy(path, max_pixels=m.max_pixels, min_pixels=m.min_pixels)


def evaluation(cfg: Settings, run: Path, model: str) -> list[dict[str, Any]]:
    """Answer the held-out records with a model, and with blank pictures; return scored rows."""
    from vlaa_lib import evaluate
    from vlaa_lib.evaluate import prompting
    from vlaa_lib.evaluate.benchmarks import held_out as benchmark_of

    held_out = world(cfg, run, "test")
    chosen = prompting.settings(max_new_tokens=cfg.evaluate.max_new_tokens)

    def answer(policy: Any, out: Path) -> list[dict[str, Any]]:
        made = records.load(held_out / "records.jsonl", held_out / "images").records
        asked = [benchmark_of(made, held_out / "images")]
        return evaluate.run(policy, asked, chosen, out, model, cfg.evaluate.batch)

    return answered(cfg, model_path(cfg, run, model), run / "evaluation" / model, held_out, answer)


def answered(
    cfg: Settings, path: Path | str, into: Path, data: Path,
    answer: Callable[[Any, Path], list[dict]],
) -> list[dict[str, Any]]:
    """Let the checkpoint at `path` answer what is in `data`, once; return the rows."""

    def build(out: Path) -> None:
        rows = answer(policy(cfg, path), out)
        folders.write_lines(out / "rows.jsonl", (json.dumps(row) + "\n" for row in rows))

    settings = {"evaluate": asdict(cfg.evaluate), "model": identity(path)} | built_from(data)
    out = once(into, settings, build)
    return [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]


def identity(model: Path | str) -> Any:
    """Return what a model was built from, or its path where no stage built it."""
    marker = Path(model) / "done.json"
    return json.loads(marker.read_text()) if marker.is_file() else str(model)


def benchmark_files(cfg: Settings, run: Path) -> Path:
    """Write the six micro benchmarks as `NAME.tsv`; return their folder."""
    from vlaa_lib.pocket.microworld import benchmarks

    def build(path: Path) -> None:
        for name in benchmarks.BENCHMARKS:
            benchmarks.write_tsv(name, path / f"{name}.tsv", cfg.data.bench_rows, cfg.seed)

    settings = {"rows": cfg.data.bench_rows, "seed": cfg.seed}
    return once(run / "benchmarks", settings, build)


def benchmarks(cfg: Settings, run: Path, model: str) -> list[dict[str, Any]]:
    """Answer the six micro benchmarks with a model, and with blank pictures; return scored rows.

    The rows are what `evaluate --benchmark` writes, with the columns model and blank; see
    `evaluate.stats` for tables of them.
    """
    from vlaa_lib import evaluate
    from vlaa_lib.evaluate import prompting
    from vlaa_lib.evaluate.benchmarks import read
    from vlaa_lib.pocket.microworld.benchmarks import BENCHMARKS

    folder = benchmark_files(cfg, run)
    limits = {"max_pixels": cfg.model.max_pixels, "min_pixels": cfg.model.min_pixels}
    chosen = prompting.settings(max_new_tokens=cfg.evaluate.max_new_tokens, **limits)

    def answer(policy: Any, out: Path) -> list[dict[str, Any]]:
        asked = [read(n, folder / f"{n}.tsv", folder / "images") for n in BENCHMARKS]
        return evaluate.run(policy, asked, chosen, out, model, cfg.evaluate.batch)

    into = run / "evaluation" / f"{model}-micro"
    return answered(cfg, model_path(cfg, run, model), into, folder, answer)


def matrix(
    profile: str, seeds: list[int], names: list[str], run_dir: str | Path | None = None
) -> list[dict[str, Any]]:
    """Build and evaluate models over several seeds; write and return `results/matrix.csv`.

    One row a model and seed, over all held-out records of that seed; what stays the same over the
    seeds is the starting checkpoint.
    """
    from vlaa_lib import evaluate, profiles

    table: list[dict[str, Any]] = []
    home = folder(profiles.load(profile), run_dir or f"runs/{profile}-matrix")
    for seed in seeds:
        cfg = profiles.load(profile, seed=seed)
        run = folder(cfg, home / f"seed-{seed}")
        for name in names:
            rows = evaluate.summary(evaluation(cfg, run, name), cfg.evaluate.bootstrap)
            table += [{"seed": seed, **row} for row in rows if row["source"] == "all"]
            write_csv(home / "results" / "matrix.csv", table)
    return table
