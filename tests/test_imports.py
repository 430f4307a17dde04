"""The house's order: imports run one way, in no circle, and the pocket world can be taken out."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter

from vlaa_lib import ROOT

# from the bottom up: a room imports from its own line and from those above it in this list
FLOORS = (
    ("vlaa_lib", "worlds"), ("escape", "folders", "prompts", "progress", "tables"), ("records",),
    ("images", "profiles"), ("models", "llm"), ("rewards", "options"),
    ("sources", "construct", "traces"), ("train",), ("subsets", "evaluate"),
    ("process", "checks"), ("show",), ("pocket",), ("study",), ("cli", "commands", "__main__"),
)  # fmt: skip


def imports():
    """Return the modules of ours that each module imports, by full names."""
    files = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
        for p in (ROOT / "vlaa_lib").rglob("*.py")
    }
    found = {}
    for name, path in files.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom):
                continue
            parts = package.split(".")[: len(package.split(".")) + 1 - node.level]
            base = ".".join([*(parts if node.level else []), *filter(None, [node.module])])
            wanted = (f"{base}.{a.name}" if f"{base}.{a.name}" in files else base
                      for a in node.names)  # fmt: skip
            found[name] |= {one for one in wanted if one in files} - {name}
    return found


def test_no_module_imports_itself_in_a_circle():
    list(TopologicalSorter(imports()).static_order())  # a circle is a CycleError with its members


def test_imports_run_one_way():
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    rooms = {name: [*name.split("."), "vlaa_lib"][1] for name in imports()}
    rooms["vlaa_lib"] = "vlaa_lib"
    upward = {
        (name, other) for name, others in imports().items() for other in others
        if floor[rooms[other]] > floor[rooms[name]]
    }  # fmt: skip
    assert not upward


def test_a_script_that_trains_leaves_its_maths_workers_light():
    # each worker imports the script's main module again, and with it what that imports
    code = "import sys, vlaa_lib.train; assert not {'trl', 'datasets'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_core_runs_without_the_pocket_world():
    above = {"pocket", "study", "cli", "__main__"}
    core = [name for name in imports() if not above & set(name.split("."))]
    code = (
        "import importlib, sys\n"
        "from vlaa_lib import worlds\n"
        "sys.modules['vlaa_lib.pocket'] = None\n"  # an import of it fails as if it were not there
        "worlds.entry_points = lambda group: ()\n"
        f"for name in {core!r}: importlib.import_module(name)\n"
        "from vlaa_lib import records, rewards, traces\n"
        "assert worlds.known().reward_model is None\n"
        "assert traces.check_steps('It is 3.', {'kind': 'bars'})[0].truth is None\n"
        "record = records.Record('a', 'a.png', 'How many?', '3', reward='digit', solution='3')\n"
        "assert rewards.score(record, '<think>x</think><answer>3</answer>').value == 1\n"
        "record = records.Record('a', 'a.png', 'What?', 'a', reward='open', solution='a')\n"
        "assert 'no reward model' in rewards.audit([record])[0].reason\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_an_installation_older_than_its_micro_world_is_one_clear_error():
    code = (
        "from vlaa_lib import VlaaError, worlds\n"
        "worlds.entry_points = lambda group: ()\n"
        "try: worlds.known()\n"
        "except VlaaError as error: assert 'pip install -e .' in str(error)\n"
        "else: raise SystemExit('nothing said')\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_names_that_other_code_uses_stay():
    from vlaa_lib import microworld, process, records  # noqa: F401
    from vlaa_lib.evaluate import extract, kit, metrics, scoring
    from vlaa_lib.pocket import microworld as moved
    from vlaa_lib.process import aggregate

    assert microworld is moved and kit.MODES
    for function in (records.load, records.Record, aggregate.mean, extract.extract, kit.prepared,
                     metrics.measure, scoring.score_all):  # fmt: skip
        assert callable(function)
