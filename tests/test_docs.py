"""The README: its paths exist, its commands parse, it stays short."""

import re
import shlex

import pytest

from commands import parsed
from vlaa_lib import ROOT, cli, profiles
from vlaa_lib.sources import fetch

README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDES = [
    (ROOT / "data" / f"{name}.md").read_text(encoding="utf-8")
    for name in ("CONSTRUCT", "TRAINING", "EVALUATION", "PROCESS")
]
BLOCKS, GUIDED, *OTHERS = (
    re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL) for text in (README, *GUIDES)
)
COMMANDS = [
    line.split("#")[0].strip()
    for kind, text in [*BLOCKS, *GUIDED, *(block for blocks in OTHERS for block in blocks)]
    if kind == "bash"
    for line in text.splitlines()
    if line.strip()
]


def test_readme_is_short_and_complete():
    assert len(README.splitlines()) < 180
    assert not re.search(r"[A-Z]+_MINUTES|FINDINGS", README)


def test_the_example_of_endpoints_is_read(tmp_path):
    from vlaa_lib import construct

    (tmp_path / "teachers.yaml").write_text(next(t for kind, t in GUIDED if kind == "yaml"),
        encoding="utf-8")
    found = construct.read_endpoints(tmp_path / "teachers.yaml")
    assert found["distil"].api_key_env == "DEEPSEEK_API_KEY"
    assert found["caption"].cost(1e6, 1e6) == 12.5


def test_paths_in_prose_exist():
    for path in re.findall(r"`((?:notebooks|vlaa_lib|data|tests)/[\w./]*)`", README):
        assert (ROOT / path).exists(), path


def test_tree_is_the_tree():
    tree = next(text for kind, text in BLOCKS if not kind and "README.md" in text)
    folder, named = ROOT, set()
    for line in tree.splitlines():
        indent, name = len(line) - len(line.lstrip()), line.split()[0]
        folder = ROOT if indent == 0 else folder
        # a line may name its neighbours too
        others = re.findall(r"\b\w+\.py\b|\b(?<!/)\w+/(?=:)", line) if indent else []
        for one in {name, *others}:
            assert (folder / one).exists(), f"{folder / one}"
            named |= {one.rstrip("/")} if folder.name == "vlaa_lib" else set()
        if indent == 0 and name.endswith("/"):
            folder = ROOT / name
    modules = {p.name for p in (ROOT / "vlaa_lib").iterdir() if not p.name.startswith("_")}
    assert modules == named


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command):
    words = shlex.split(command)
    if words[0] == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(
            encoding="utf-8"), re.MULTILINE)
        assert words[1] in targets
    elif words[0] == "papermill":
        assert (ROOT / words[1]).is_file()
    else:
        assert words[:3] == ["python", "-m", "vlaa_lib"]
        parsed(words[3:])  # an error on anything unknown


def test_the_readme_trains_and_evaluates_on_other_pictures_of_its_first_run():
    given = [parsed(shlex.split(c)[3:]) for c in COMMANDS if "vlaa_lib " in c]
    run = next(args for args in given if args.command == "run")
    built, trained = (
        next(a for a in given if a.command == name and a.records)
        for name in ("construct", "train")
    )
    asked = next(a for a in given if a.command == "evaluate" and a.model == trained.out)
    for args, split in ((built, "train"), (asked, "test")):
        world = f"{run.run_dir}/world/{split}"
        assert (args.records, args.images) == (f"{world}/records.jsonl", f"{world}/images")
    assert (trained.records, trained.images) == (f"{built.out}/rl.jsonl", built.images)


def test_the_released_dataset_is_where_all_look_for_it():
    folders = {profiles.load(name).data.folder for name in ("single", "paper")}
    files = {f"{folder}/{name}" for folder in folders for name in fetch.SPLITS.values()}
    slurm = (ROOT / "data/slurm/grpo.sbatch").read_text(encoding="utf-8")
    found = re.findall(r"data/vlaa[\w./-]*", "\n".join((README, *GUIDES, slurm)))
    assert files <= set(found) <= {*files, *folders, *(f"{folder}/images" for folder in folders)}


@pytest.mark.parametrize(
    "words", [[], *([name] for name in cli.command_of([])[0].commands), ["data", "fetch"],
              ["process", "judge"]], ids=" ".join,
)  # fmt: skip
def test_every_command_has_help(capsys, words):
    assert cli.main([*words, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Usage: python -m vlaa_lib" in shown and "None" not in shown


def test_the_readmes_results_are_the_measured_ones():
    import csv

    def cells(row, *columns):
        return [f"{round(float(row[column]), 3):g}" for column in columns]

    lines = [re.findall(r"[\w.]+", line) for line in README.splitlines() if line.startswith("|")]
    with (ROOT / "data/results/laptop/accuracy.csv").open(encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["source"] == "all"]
    columns = ("accuracy", "low", "high", "blank_accuracy", "reward", "format_rate")
    for row in rows:
        assert [row["model"], *cells(row, *columns)] in lines
