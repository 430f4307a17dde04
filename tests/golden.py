"""Golden nets: what this code computes, in hashes and numbers, to prove that nothing changed it.

    python tests/golden.py write FILE [--full]     what the working tree computes (full: no hashes)
    python tests/golden.py compare FILE [NET...]   compute it again, exactly; 1 where it differs
    python tests/golden.py csv RUN_DIR             hashes of a finished run's tables, without times

Long values of a net are kept as a hash. Each net imports at its own top what it measures, so that
a moved module breaks one net only. The `inputs` of `data/golden.json` are what `extraction` reads.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: sums depend on the threads

import base64
import csv
import hashlib
import io
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import chain, islice, product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the package beside this file, wherever another one is installed
DATA = ROOT / "tests" / "data"
GOLDEN = json.loads((DATA / "golden.json").read_text(encoding="utf-8"))
LONGEST = 320  # characters of JSON that are kept as they are
Net = dict[str, Any]


def as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def sha(value: Any) -> str:
    """Return the hash of a value's JSON, or of bytes."""
    data = value if isinstance(value, bytes) else as_json(value).encode("utf-8", "replace")
    return "#" + hashlib.sha256(data).hexdigest()[:20]


def shortened(net: Net) -> Net:
    """Replace long values by their hash; short ones stay, as JSON reads them back."""
    return {k: json.loads(t) if len(t := as_json(v)) <= LONGEST else sha(v) for k, v in net.items()}


def _timeless(path: Path) -> list[list[tuple[str, str]]]:
    """Return a CSV file's cells without the columns that hold a time."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [[(k, v) for k, v in row.items() if k not in ("seconds", "step_time")] for row in rows]


def records() -> Net:
    """About 1,000 records of each split, by source, as their fields."""
    from vlaa_lib.pocket.microworld import SOURCES, SPLITS, record

    return {f"{split}/{source}": sha([asdict(record(source, split, i)) for i in range(112)])
            for split, source in product(SPLITS, SOURCES)}  # fmt: skip


def pictures() -> Net:
    """The pixels of 200 pictures of each split, in the order of the streams, whose ids count."""
    from vlaa_lib.pocket.microworld import SOURCES, SPLITS, stream

    found: Net = {}
    for split in SPLITS:
        samples = chain.from_iterable(zip(*(stream(n, split, 1) for n in SOURCES), strict=True))
        found[split] = sha([(s.record.id, _pixels(s.image)) for s in islice(samples, 200)])
    return found


def _pixels(image: Any) -> str:
    return sha([image.mode, image.size, sha(image.tobytes())])


def benchmarks() -> Net:
    """Sixty rows of each micro benchmark; pictures as pixels, which no PNG encoder changes."""
    from PIL import Image

    from vlaa_lib.pocket.microworld.benchmarks import BENCHMARKS, rows

    def shown(cell: str) -> str:  # a short one is the index of the row that has the picture
        return cell if len(cell) < 64 else _pixels(Image.open(io.BytesIO(base64.b64decode(cell))))

    return {n: sha([r | {"image": shown(r["image"])} for r in rows(n, 60)]) for n in BENCHMARKS}


def rewards() -> Net:
    """Every row of `reward_cases.csv` scored, tagged and bare: values, and with them reasons."""
    from vlaa_lib import prompts, rewards
    from vlaa_lib.records import Record

    with (DATA / "reward_cases.csv").open(encoding="utf-8", newline="") as stream:
        cases = list(csv.DictReader(stream))
    made = []
    for case in cases:
        frame, _, size = case["frame"].partition(" ")
        meta = {"image_size": [int(side) for side in size.split("x")]} if size else {}
        solution = "" if "†" in case["gold"] else case["gold"]
        fields = {"question": case["question"], "gt": case["gold"], "reward": case["reward"]}
        made.append(Record("r", "a/b.png", **fields, solution=solution, frame=frame, meta=meta))
    bare = [case["answer"] for case in cases]
    kinds = {"tagged": [prompts.join_think_answer("I look.", text) for text in bare], "bare": bare}
    found: Net = {"cases": len(cases)}
    for kind, texts in kinds.items():
        said = [(s.value, s.reason) for s in rewards.score_all(made, texts)]
        found[f"values/strict/{kind}"] = sha([value for value, _ in said])
        found[f"reasons/strict/{kind}"] = sha(said)
    return found


def extraction() -> Net:
    """Every text of the inputs read as a reply to every row, by every rule; and hostile texts."""
    from vlaa_lib.evaluate.extract import MODES, extract
    from vlaa_lib.evaluate.scoring import score_all

    given = GOLDEN["inputs"]["extraction"]
    texts, hostile = given["texts"], [unit * times for unit, times in given["hostile"]]
    found: Net = {"texts": len(texts), "rows": len(given["rows"])}
    for name, (benchmark, row) in given["rows"].items():
        rows = {m: score_all(benchmark, [row] * len(texts), texts, m) for m in MODES}
        for kind, keys in (("verdicts", "extracted path gold hit"), ("reasons", "reason")):
            said = {m: [[r[k] for k in keys.split()] for r in mine] for m, mine in rows.items()}
            found[f"{kind}/{name}"] = {m: sha(mine) for m, mine in said.items()}
    for n, m in product(given["plain"], MODES):
        found[f"hostile/{n}/{m}"] = sha([extract(*given["rows"][n], text, m) for text in hostile])
    return found


def profiles() -> Net:
    """Every setting of every profile."""
    from vlaa_lib.profiles import load, names

    return {f"{n}/{key}": value for n in names() for key, value in asdict(load(n)).items()}


def plan() -> Net:
    """What the planner says of every profile and method on 1 and 8 GPUs."""

    from vlaa_lib import VlaaError, profiles
    from vlaa_lib.train import plan
    from vlaa_lib.train.plan import Setup
    from vlaa_lib.train.shapes import shape_of

    found: Net = {}
    ways = list(product(("sft", "grpo"), ((1, "ddp"), (8, "ddp"), (8, "fsdp2"))))
    for name in profiles.names():
        cfg = profiles.load(name)
        shape = replace(shape_of(cfg.model.policy), origin="")  # without a path of this machine
        for method, way in ways:
            place, records = f"{name}/{method}/{way[0]} {way[1]}", plan.PAPER_RECORDS[method]
            try:
                said = plan.plan(Setup(cfg, method, shape, *way, 80, records, True))
                found |= {f"{place}/{key}": said.pop(key) for key in ("batches", "peak_bytes")}
                found[f"{place}/rest"] = said
            except VlaaError as error:
                found[f"{place}/refused"] = str(error)
    return found


def training() -> Net:
    """A few steps of SFT and of GRPO with the pocket VLM: logs, weights, texts, greedy answers.

    Floats depend on the CPU's instructions, and so do texts: other machines compare less.
    """
    from vlaa_lib import evaluate, models, profiles, prompts, traces, train
    from vlaa_lib.pocket import microworld
    from vlaa_lib.pocket.microworld import narrator

    own = {"sft.max_steps": 3, "sft.per_device_batch": 8, "sft.warmup": 0.0}
    own |= {"grpo.max_steps": 3, "grpo.rollout_prompts": 8, "grpo.warmup": 0.0}
    cfg, found = profiles.load("smoke", **own), {}
    with tempfile.TemporaryDirectory() as home:
        folder, images = Path(home), Path(home) / "images"
        made = microworld.write_split(folder, list(microworld.SOURCES), "train", 4)
        plain = [narrator.plain_trace(r.meta["scene"], r.question) for r in made]
        answers = [prompts.join_think_answer(*said) for said in plain]
        taught = [replace(r, answer=a) for r, a in zip(made, answers, strict=True)]
        found["texts/plain"] = sha(answers)
        for method, given in (("sft", taught), ("grpo", made)):
            out = folder / method
            for row in getattr(train, method)(cfg, given, images, out):
                found |= {f"{method}/{row['step']}/{key}": value
                          for key, value in row.items() if key != "step_time"}  # fmt: skip
            policy = models.load_policy(out)
            sizes = (p.detach().double().abs().sum() for p in policy.model.parameters())
            found[f"{method}/weights"] = float(sum(sizes))
            found[f"texts/{method} answers"] = evaluate.generate(policy, made[::4], images, 8, 48)
        rows = traces.load(folder / "grpo" / "traces")
        found["texts/rollouts"] = [(row["record_id"], row["completion"]) for row in rows]
        found["texts/scores"] = [(row["reward"], row["reason"]) for row in rows]
    return found


def construction() -> Net:
    """The files that a construction of 36 records with the local teacher writes."""
    from vlaa_lib import construct, pocket
    from vlaa_lib.pocket import microworld
    from vlaa_lib.pocket.microworld.narrator import Rates

    with tempfile.TemporaryDirectory() as home:
        world, out = Path(home) / "world", Path(home) / "out"
        made = microworld.write_split(world, list(microworld.SOURCES), "train", 4, seed=3)
        scenes = pocket.scenes_of(made, world / "images")
        with pocket.serve_teacher(scenes, Rates(0.15, 0.15, 0.15, 0.4, 0.3)) as base_url:
            construct.run(made, world / "images", base_url, out, progress=False)
        files = [world / "records.jsonl", *(out / f"{n}.jsonl" for n in ("sft", "rl", "drops"))]
        made = {f.name: [f.read_text(
            encoding="utf-8").count("\n"), sha(f.read_bytes())] for f in files}
        return made | {"counts.csv": _timeless(out / "counts.csv")}


def traces() -> Net:
    """What is measured in the curated traces."""
    from vlaa_lib import traces
    from vlaa_lib.records import load

    folder, found = ROOT / "data" / "traces", {}
    rows, asked = traces.load(folder), load(folder / "records.jsonl").records
    scenes = {record.id: (record.meta.get("scene"), record.question) for record in asked}
    runs: dict[str, list[dict]] = {}
    for row in traces.measured(rows, asked):
        runs.setdefault(row["model"], []).append(row)
    for name, mine in runs.items():
        texts = [(row["completion"], *scenes[row["record_id"]]) for row in mine]
        found |= {f"measured/{name}": mine, f"summary/{name}": traces.summarise(texts)}
    return found | {"flipped": traces.flipped(runs["sft"], runs["grpo"])}


def viewer() -> Net:
    """Three curated traces: the whole page, the data it is given, pictures, and the table."""
    from vlaa_lib import traces
    from vlaa_lib.show import html, prepare
    from vlaa_lib.show.style import picture

    examples = traces.curated()[::12][:3]
    state = prepare.prepare(examples)
    found: Net = {f"data/{example['id']}": example for example in state.pop("examples")}
    found |= {f"data/{key}": value for key, value in state.items()}
    found["data of all"] = prepare.prepare(traces.curated())
    found["pictures"] = [picture(example, 384) for example in examples]
    with tempfile.TemporaryDirectory() as home:
        page = html.to_html(examples, Path(home) / "page.html").read_text(encoding="utf-8")
    return found | {"page": page, "table": html.render(examples)}


def _replies(golds: list[str], seed: int) -> list[str]:
    """Return right, wrong and broken replies in the place of a model's."""
    rng, tagged = random.Random(seed), "<think>x</think><answer>{}</answer>"
    shapes = (tagged, tagged, tagged.format("-77"), tagged.format("A"), "The answer is {}.", "{}",
              "<think>so {}", "<answer>{}</answer>", "Because it is so", "", "**Answer:** {}",
              '{"solution": "x", "short answer": "{}"}')  # fmt: skip
    return [rng.choice(shapes).replace("{}", gold) for gold in golds]


def scores() -> Net:
    """Metrics, intervals and comparisons of two made-up models; reports on micro records."""
    from vlaa_lib import evaluate, pocket
    from vlaa_lib.evaluate import stats
    from vlaa_lib.evaluate.scoring import score_all
    from vlaa_lib.pocket import microworld
    from vlaa_lib.pocket.microworld.benchmarks import BENCHMARKS, rows
    from vlaa_lib.rewards import signs
    from vlaa_lib.study.calibration import calibration

    found: Net = {}
    scored: list[dict] = []
    for name in BENCHMARKS:
        asked = [row | {"images": []} for row in rows(name, 30)]
        golds = [str(row.get("answer_option") or row["answer"]) for row in asked]
        runs = {}
        for seed, (model, blank) in enumerate(product("ab", (False, True))):
            made = score_all(name, asked, _replies(golds, seed))
            runs[model, blank] = [{"model": model, "blank": blank, **row} for row in made]
            scored += runs[model, blank]
        one, two = runs["a", False], runs["b", False]
        found[f"compare/{name}"] = stats.compare(name, [one], [two])
        found[f"compare runs/{name}"] = stats.compare(name, [one, two], [two])
        found[f"metrics/{name}"] = stats.by_metric([r for m in runs.values() for r in m], 200)
    for row in stats.table4(scored, 200):
        found[f"table4/{row['model']}/{row['benchmark']}"] = row
    found["relative change"] = stats.relative_change(scored, "a", 200)
    found["flips"] = stats.flips(scored, "a", "b")
    found["by rule"] = stats.by_rule(scored, resamples=100)
    found["mcnemar"] = [stats.mcnemar(k, 9) for k in range(12)]
    found["bootstrap"] = evaluate.bootstrap([0.0, 1.0, 1.0, 0.25, 0.5], 500)

    made = [microworld.record(s, "test", i) for s in microworld.SOURCES for i in range(8)]
    for blank in (False, True):
        replies = _replies([record.solution for record in made], 5 + blank)
        found[f"rows/{blank}"] = evaluate.score_rows(made, replies, model="a", blank=blank)
    answered = found["rows/False"] + found["rows/True"]
    found |= {f"summary/{row['source']}": row for row in evaluate.summary(answered, 300)}
    told = {"completion_tokens": 9, "clipped": False, "optimizer_step": 3}
    found["watch"] = signs.measure([
        row | told | {"suspicious": signs.kinds(row["completion"], part=row["part"])}
        for row in answered
    ])
    opened = [record for record in made if record.reward == "open"]
    report = calibration(pocket.SCENE_FACTS, opened, pocket.scene_candidates(opened))
    return found | {f"calibration/{key}": value for key, value in report._asdict().items()}


def process() -> Net:
    """Best-of-N, aggregation and the measures of a ViLPRM on made-up pools."""
    from vlaa_lib.process import aggregate, best_of_n, pools, prm, steps

    rng, found = random.Random(0), {}
    made = [
        pools.collect({"generator": name, "record_id": f"q{i}", "sample": k, "completion": "So.",
                       "source": "s", "answer": rng.choice("345"), "correct": rng.random() < 0.4}
                      for i in range(30) for k in range(pools.GREEDY, reach))
        for name, reach in (("g", 16), ("h", 8))
    ]  # fmt: skip
    keys = [(p.generator, i, r["sample"]) for p in made for i, c in p.candidates.items() for r in c]
    noise = {key: [rng.random() for _ in range(rng.randint(0, 5))] for key in keys}
    whole = {key: [rng.randint(1, 5) / 5 for _ in range(rng.randint(1, 9))] for key in keys}
    whole[keys[0]][0] = float("nan")
    given, some = {"noise": noise, "whole": whole}, list(whole.values())[:20]
    for row in best_of_n.table(made, given, resamples=200, against=("random", "greedy", "whole")):
        found.setdefault(f"best of n/{row['generator']}/{row['n']}", []).append(row)
    found |= {f"aggregate/{n}": list(map(f, some)) for n, f in aggregate.AGGREGATORS.items()}
    groups = [[(rng.random(), rng.randint(0, 4) / 4) for _ in range(6)] for _ in range(12)]
    found |= {"measures": prm.measures(groups), "spearman": list(map(prm.spearman, groups))}
    found["calibration"] = prm.calibration([pair for group in groups for pair in group])
    return found | {"steps": [steps.split(t) for t in GOLDEN["inputs"]["extraction"]["texts"]]}


NETS: dict[str, Callable[[], Net]] = {
    net.__name__: net
    for net in (records, pictures, benchmarks, rewards, extraction, profiles, plan, training,
                construction, traces, viewer, scores, process)
}  # fmt: skip


def differences(golden: Net, found: Net) -> list[str]:
    """Return a line for each key whose value is not the same; long values count by their hash."""
    was, now = ({k: as_json(v) for k, v in shortened(net).items()} for net in (golden, found))
    return [f"{key}: was {was.get(key, 'not there')[:160]}, is {now.get(key, 'not there')[:160]}"
            for key in dict.fromkeys((*was, *now)) if was.get(key) != now.get(key)]  # fmt: skip


def main(words: list[str]) -> int:
    match words:
        case ["csv", folder]:
            for path in sorted((Path(folder) / "results").glob("*.csv")):
                print(f"{sha(_timeless(path))}  {path.name}")
        case ["write", file, *flags]:
            made = {"inputs": GOLDEN["inputs"]}
            for name, net in NETS.items():
                start = time.monotonic()
                made[name] = net() if "--full" in flags else shortened(net())
                print(f"{name}: {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
            lines = (f"{as_json(name)}: {as_json(net)}" for name, net in made.items())
            Path(file).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        case ["compare", file, *names]:
            golden, failed = json.loads(Path(file).read_text(encoding="utf-8")), 0
            for name in names or NETS:
                try:
                    wrong = differences(golden[name], NETS[name]())
                except Exception as error:  # what breaks one net hides no other
                    wrong = [f"{type(error).__name__}: {error}"]
                failed += bool(wrong)
                verdict = f"DIFFERENT, {len(wrong)} keys" if wrong else "same"
                print(f"{name}: {verdict}", *wrong[:8], sep="\n    ", flush=True)
            return int(failed > 0)
        case _:
            print(__doc__)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
