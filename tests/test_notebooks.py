"""Notebooks: their shape, and exercise checks that reject wrong functions."""

import ast
import json
import math
import re

import pytest

from vlaa_lib import ROOT, checks, evaluate, pocket, prompts, rewards, traces
from vlaa_lib.construct import AHA_KEYWORDS, has_aha
from vlaa_lib.evaluate.metrics import wemath_class
from vlaa_lib.evaluate.stats import mcnemar
from vlaa_lib.process import aggregate, search
from vlaa_lib.profiles import accumulation
from vlaa_lib.rewards import open_ended
from vlaa_lib.rewards.choices import choose
from vlaa_lib.train import objective

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
NAMES = ["00_tour", "01_dataset_construction", "02_sft", "03_mixed_reward", "04_grpo",
         "05_evaluation", "06_sft_vs_rl_traces", "07_process_rewards"]


def cells(path, kind):
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


def code(path):
    return ["".join(cell["source"]) for cell in cells(path, "code")]


def test_the_road_is_complete_and_in_order():
    assert [path.stem for path in NOTEBOOKS][: len(NAMES)] == NAMES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestShape:
    def test_is_small_clean_and_says_its_kernel(self, path):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        assert path.stat().st_size < 60_000
        assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
        assert notebook["metadata"].keys() <= {"kernelspec", "language_info"}
        assert notebook["metadata"]["kernelspec"]["name"] == "python3"

    def test_every_cell_has_an_id_and_no_output(self, path):
        found = json.loads(path.read_text(encoding="utf-8"))["cells"]
        ids = [cell["id"] for cell in found]
        assert len(set(ids)) == len(ids)
        for cell in cells(path, "code"):
            assert cell["execution_count"] is None and cell["outputs"] == []
        assert all(cell["metadata"].keys() <= {"tags"} for cell in found)

    def test_cells_are_short_and_balanced(self, path):
        assert all(len(text.splitlines()) <= 12 for text in code(path))
        assert all(len(line) <= 100 for text in code(path) for line in text.splitlines())
        assert 20 <= len(json.loads(path.read_text(encoding="utf-8"))["cells"]) <= 50
        assert 12 <= len(code(path)) <= 26

    def test_one_parameters_cell_with_typed_one_liners(self, path):
        tagged = [c for c in cells(path, "code") if "parameters" in c["metadata"].get("tags", [])]
        assert len(tagged) == 1
        lines = "".join(tagged[0]["source"]).splitlines()
        assert all(re.fullmatch(r"\w+: \w+ = [^#]+  # .+", line) for line in lines)
        assert {line.split(":")[0] for line in lines} >= {"profile", "run_dir"}

    def test_cells_define_install_and_hide_nothing(self, path):
        for text in code(path):
            tree = ast.parse(text)  # a magic or a shell line is no Python, and not wanted
            for node in ast.walk(tree):
                assert not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
                if isinstance(node, ast.ExceptHandler):
                    assert isinstance(node.type, (ast.Name, ast.Attribute))
                    assert getattr(node.type, "id", "") not in ("Exception", "BaseException")
            assert not re.search(r"sys\.path|os\.environ|chdir|subprocess|sys\.exit", text)

    def test_has_its_sections_and_a_live_source(self, path):
        prose = "\n".join("".join(cell["source"]) for cell in cells(path, "markdown"))
        for part in ("Your guess", "## What you saw", "**The paper says:**", "**Limits:**",
                     "## Exercise", "Next:", "\n> "):
            assert part in prose, part
        assert any("show.source(" in text for text in code(path))
        assert any("assert " in text for text in code(path))
        assert any("checks." in text for text in code(path)[-2:])

    def test_prose_types_no_result_and_no_tag(self, path):
        for cell in cells(path, "markdown"):
            text = "".join(cell["source"])
            ours = "\n".join(line for line in text.splitlines() if not line.startswith(">"))
            # 95 % is the level of an interval, not a result
            assert not re.search(r"(?<![\w.])\d+\.\d+|\d ?%", ours.replace("95 %", ""))
            assert not any(tag in text for tag in prompts.TAGS)


def parsed_loosely(text):
    """Accept any text that holds an answer block."""
    inside = text.partition(prompts.ANSWER_OPEN)[2].partition(prompts.ANSWER_CLOSE)[0]
    return prompts.Parsed("two and one", inside, None if inside else "none")


def without_order(text):
    if text.strip().startswith(prompts.ANSWER_OPEN):
        return prompts.Parsed("two and one", "3")
    return prompts.split_think_answer(text)


def steps_with(change):
    """Return a check_steps whose truths are passed through `change`."""
    def fn(trace, scene):
        found = traces.check_steps(trace, scene)
        return [traces.Step(step.text, change(step.truth)) for step in found]
    return fn


def swapped(trace, scene):
    found = pocket.corrections(trace, scene)
    return found | {"helped": found["hurt"], "hurt": found["helped"]}


def overlap_over_first(a, b):
    inner = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    area = (a[2] - a[0]) * (a[3] - a[1])
    return inner / area if area else 0.0


def signed_overlap(a, b):
    """Forget that boxes may be apart: two negative sides make a positive area."""
    inner = (min(a[2], b[2]) - max(a[0], b[0])) * (min(a[3], b[3]) - max(a[1], b[1]))
    union = sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)) - inner
    return inner / union if union else 0.0


def undivided(a, b):
    union = sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))
    return rewards.iou(a, b) if union else 1 / union


def letter(text, choices, pattern):
    """Take a letter wherever a pattern finds one."""
    found = re.findall(pattern, text)
    return (found[0].upper(), "") if len(set(found)) == 1 else (None, "no single letter")


def centred(rewards):
    return rewards - rewards.mean(dim=1, keepdim=True)


def percentiles(values):
    """Take the spread of the rows for the spread of their mean."""
    import numpy

    return tuple(float(v) for v in numpy.quantile(values, (0.025, 0.975)))


def first_best(values, correct):
    """Take the first of the highest, as `max` and `argmax` do."""
    return float(correct[values.index(max(values))]) if values else 0.0


def bound(node, exploration, visits, scale=1.0):
    """Return an upper bound with other visits in the logarithm, or another factor."""
    spread = math.sqrt(scale * math.log(visits) / node.visits)
    return node.total / node.visits + exploration * spread


RIGHT = [
    (checks.has_aha, has_aha),
    (checks.split_think_answer, prompts.split_think_answer),
    (checks.iou, rewards.iou),
    (checks.relative, open_ended.relative),
    (checks.choose, choose),
    (checks.completion_labels, checks.worked_labels),
    (checks.accumulation, accumulation),
    (checks.group_advantages, objective.advantages),
    (checks.extract_answer, evaluate.extract_answer),
    (checks.bootstrap, evaluate.bootstrap),
    (checks.wemath_class, wemath_class),
    (checks.mcnemar, mcnemar),
    (checks.check_steps, traces.check_steps),
    (checks.corrections, pocket.corrections),
    (checks.last_n, aggregate.last_n),
    (checks.best_candidate, aggregate.choose),
    (checks.best_candidate, lambda values, correct: aggregate.choose(values, correct).accuracy),
    (checks.uct, search.uct),
]
WRONG = {
    checks.has_aha: [
        (lambda text: any(word in text for word in AHA_KEYWORDS), "whatever its case"),
        (lambda text: any(re.search(rf"\b{w}\b", text.lower()) for w in AHA_KEYWORDS), "substring"),
        (lambda text: any(w in text.lower() for w in AHA_KEYWORDS[:-1]), "several words"),
        (lambda text: True, "no keyword"),
    ],
    checks.split_think_answer: [
        (parsed_loosely, "no|missing"),
        (without_order, "missing|order"),
        (lambda text: prompts.Parsed("", "", "always"), "this is the format"),
        (lambda text: prompts.split_think_answer(text.strip() + prompts.ANSWER_CLOSE), "format"),
    ],
    checks.iou: [
        (overlap_over_first, "union"),
        (signed_overlap, "apart in both"),
        (undivided, "division by zero"),
        (lambda a, b: 1 - rewards.iou(a, b), "covers itself"),
    ],
    checks.relative: [
        (lambda new, old, beta: 1 - math.exp(-beta * (new - old)), "never less"),
        (lambda new, old, beta: float(new > old), "one point better"),
        (lambda new, old, beta: open_ended.relative(new, 0.0, beta), "difference"),
        (lambda new, old, beta: open_ended.relative(new, old), "small beta"),
    ],
    checks.choose: [
        (lambda text, choices: letter(text, choices, r"\b[A-D]\b"), "case do not matter"),
        (lambda text, choices: letter(text, choices, r"\b[A-Ca-c]\b"), "exact text"),
        (lambda text, choices: choose(text.removeprefix("not "), choices), "denial"),
        (lambda text, choices: choose(text.partition(" or ")[0], choices), "candidates"),
        (lambda text, choices: choose(text, {}), "exact text"),
        (lambda text, choices: (choose(text, choices)[0], "why"), "letter alone"),
    ],
    checks.completion_labels: [
        (lambda prompt, completion, padding: [*prompt, *completion] + [-100] * padding, "prompt"),
        (lambda prompt, completion, padding: checks.worked_labels(prompt, completion)
         + [0] * padding, "padding"),
        (lambda prompt, completion, padding: [
            t if t in completion and t not in prompt else -100
            for t in [*prompt, *completion, *[-1] * padding]], "place decides"),
    ],
    checks.accumulation: [
        (lambda batch, device: batch // device, "no multiple"),
        (lambda batch, device: max(1, round(batch / device)), "no multiple"),
        (lambda batch, device: batch, "16 passes|one forward"),
    ],
    checks.group_advantages: [
        (centred, "standard deviation"),
        (lambda rewards: centred(rewards) / rewards.std(dim=1, keepdim=True), "all right"),
        (lambda rewards: centred(rewards)
         / (rewards.std(dim=1, keepdim=True, correction=0) + 1e-4), "n - 1"),
        (lambda rewards: (rewards - rewards.mean()) / (rewards.std() + 1e-4), "group of its own"),
        (lambda rewards: objective.advantages(rewards)[0], "group of its own|all right"),
    ],
    checks.extract_answer: [
        (lambda text: (text.strip(), "plain"), "answer block"),
        (lambda text: (prompts.split_think_answer(text).answer, "tags"), "without any tag"),
        (lambda text: evaluate.extract_answer(text) if prompts.THINK_CLOSE in text
         else (text.strip(), "plain"), "cut off"),
    ],
    checks.bootstrap: [
        (percentiles, "standard errors"),
        (lambda values: evaluate.bootstrap(values, level=0.5), "standard errors"),
        (lambda values: (sum(values) / len(values),) * 2, "does not hold the mean"),
        (lambda values: (0.0, 1.0), "rows that all agree"),
    ],
    checks.wemath_class: [
        (lambda steps, multi, loose: wemath_class(steps, multi), "any one step"),
        (lambda steps, multi, loose: wemath_class(steps, multi, True), "memorised"),
        (lambda steps, multi, loose: "CM" if multi else wemath_class(steps, multi), "memorised"),
        (lambda steps, multi, loose: wemath_class(steps[:2], multi, loose), "three steps"),
        (lambda steps, multi, loose: "IG" if any(steps) and not multi
         else wemath_class(steps, multi, loose), "knowledge is missing"),
    ],
    checks.mcnemar: [
        (lambda first, second: mcnemar(first, second) / 2, "either side"),
        (lambda first, second: 2 * sum(math.comb(first + second, k) for k in range(first + 1))
         / 2 ** (first + second), "does not matter"),
        (lambda first, second: min(1.0, 2 / 2 ** (first + second)), "at most one against"),
        (lambda first, second: (abs(first - second) - 1) ** 2 / (first + second), "five coins"),
    ],
    checks.check_steps: [
        (steps_with(bool), "no fact is stated"),
        (steps_with(lambda truth: True), "scene says 3"),
        (steps_with(lambda truth: truth or None), "scene says 3"),
        (lambda trace, scene: traces.check_steps(trace, scene)[:1], "each sentence"),
    ],
    checks.corrections: [
        (swapped, "false before the doubt"),
        (lambda trace, scene: pocket.corrections(trace.replace(". ", ". Hmm. "), scene),
         "nobody doubted"),
        (lambda trace, scene: pocket.corrections(trace, scene) | {"unchanged": 0}, "same again"),
        (lambda trace, scene: pocket.corrections(trace, scene or {"kind": "bars", "bars": []}),
         "without a scene"),
    ],
    checks.last_n: [
        (lambda scores, n: sum(scores[-n:]) / n, "fewer steps"),
        (lambda scores, n: sum(scores[:n]) / max(1, len(scores[:n])), "last two"),
        (lambda scores, n: sum(0 if math.isnan(s) else s for s in scores[-n:])
         / max(1, len(scores[-n:])), "left out"),
        (lambda scores, n: sum(scores[-n:]) / len(scores[-n:]), "left out"),
        (lambda scores, n: aggregate.last_n(scores, n) if scores else 0.0, "empty solution"),
    ],
    checks.best_candidate: [
        (first_best, "one of them|one is right"),
        (lambda values, correct: sum(correct) / max(1, len(correct)), "highest score"),
        (lambda values, correct: float(aggregate.choose(values, correct).accuracy > 0), "one is"),
        (lambda values, correct: aggregate.choose(
            [0.9 if math.isnan(v) else v for v in values], correct), "without a score"),
        (lambda values, correct: sum(c for v, c in zip(values, correct, strict=True)
         if v == max(values)) / max(1, values.count(max(values, default=0))), "score|last bit"),
    ],
    checks.uct: [
        (lambda node, c: node.total + c * math.sqrt(math.log(node.parent.visits) / node.visits),
         "the mean"),
        (lambda node, c: node.total / node.visits, "exploration"),
        (lambda node, c: bound(node, c, node.parent.visits, 2), "exploration"),
        (lambda node, c: bound(node, c, node.visits + 1), "exploration"),
        (lambda node, c: node.total / node.visits
         + c * math.sqrt(math.log(node.parent.visits)) / node.visits, "shrinks"),
    ],
}
REJECTED = [(check, fn, words) for check, wrong in WRONG.items() for fn, words in wrong]


@pytest.mark.parametrize(("check", "fn"), RIGHT)
def test_checks_accept_the_library(check, fn, capsys):
    check(fn)
    assert capsys.readouterr().out.endswith(".\n")


@pytest.mark.parametrize(("check", "fn", "words"), REJECTED)
def test_checks_reject_wrong_functions_in_words(check, fn, words):
    with pytest.raises(checks.NotYet, match=words):
        check(fn)


def test_every_check_meets_three_wrong_functions():
    used = set(re.findall(r"checks\.(\w+)\(my_", "\n".join(t for p in NOTEBOOKS for t in code(p))))
    assert {check.__name__ for check in WRONG} == used
    assert all(len(wrong) >= 3 for wrong in WRONG.values())


def test_an_error_of_the_reader_is_explained():
    with pytest.raises(checks.NotYet, match=r"ZeroDivisionError.*covers itself"):
        checks.iou(lambda a, b: 1 / 0)


@pytest.mark.parametrize("check", WRONG)
def test_a_function_that_returns_nothing_is_rejected(check):
    with pytest.raises(checks.NotYet, match=r"gives None|raised"):
        check(lambda *args: None)
