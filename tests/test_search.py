"""Tree search: its four phases on toy policies whose chances are known, files, statistics."""

import json
import math
import random
from collections import Counter
from dataclasses import replace

import pytest

import scoring
from vlaa_lib import VlaaError, profiles
from vlaa_lib.process import search
from vlaa_lib.process.search import Node
from vlaa_lib.show import process_figures

SETTINGS = replace(profiles.load("smoke").search, iterations=6, width=3, rollouts=6, max_depth=4)
# the first step -> (chance to take it, chance that the answer behind it is right)
TOY = {"Red.": (0.5, 0.9), "Green.": (0.3, 0.5), "Blue.": (0.2, 0.1)}


def toy_sampler(made, prefixes, seed):
    """Take a step of TOY, then state an answer that is right with the step's own chance."""
    rng = random.Random(f"{seed}/{len(made)}")
    texts = []
    for prefix in prefixes:
        if "answer" in prefix:
            texts.append("")
            continue
        first = prefix.split(" ")[0] or rng.choices([*TOY], [c for c, _ in TOY.values()])[0]
        answer = "yes" if rng.random() < TOY[first][1] else "no"
        texts.append(("" if prefix else first) + f" The answer is {answer}.")
    return texts


def is_yes(made, completions):
    return [text.endswith("yes.") for text in completions]


def toy_tree(sampler=toy_sampler, **changes):
    made = [scoring.record("digit", "3")]
    return search.grow(made, sampler, is_yes, replace(SETTINGS, **changes), seed=5)[0]


def a_node(rollouts, text="", parent=None):
    return Node(text, parent, rollouts=rollouts)


def test_values_converge_to_the_known_chances():
    tree = toy_tree(rollouts=1500, iterations=1)
    root = tree["root"]
    mean = sum(chance * right for chance, right in TOY.values())
    assert root["right"] / root["rollouts"] == pytest.approx(mean, abs=0.05)
    assert {child["step"] for child in root["children"]} == TOY.keys()
    for child in root["children"]:
        assert child["rollouts"] == 1500
        assert child["right"] / 1500 == pytest.approx(TOY[child["step"]][1], abs=0.05)


def test_visits_follow_uct():
    """Three arms with fixed values: visits are those of the bandit rule, worked out apart."""
    root, values = Node(visits=4, total=1.8), [0.9, 0.5, 0.1]
    root.children = [Node(f"{v}.", root, visits=1, total=v) for v in values]
    counts = [1, 1, 1]
    for turn in range(4, 300):
        pairs = zip(values, counts, strict=True)
        bounds = [v + 1.4 * math.sqrt(math.log(turn) / n) for v, n in pairs]
        best = bounds.index(max(bounds))
        chosen = search.select(root, 1.4)
        assert chosen is root.children[best], turn
        counts[best] += 1
        chosen.rollouts = [("", False)] * 10
        chosen.rollouts[: int(values[best] * 10)] = [("x", True)] * int(values[best] * 10)
        search.backpropagate(chosen, max_depth=9)
    assert [child.visits for child in root.children] == counts
    assert counts[0] > 2 * counts[1] > 2 * counts[2] > 2
    assert root.visits == 1 + sum(counts)
    assert search.select(root, 0.0) is root.children[0], "the best without exploration"
    assert search.select(root, 99.0) is root.children[2], "the rarest with much"


def test_expand_joins_equal_steps_and_hands_their_rollouts_on():
    rollouts = [(" One. Two.", True), (" One. Six.", False), (" Ten.", True), (" ", False)]
    node = a_node([*rollouts, (" Ten.", True), (" Ten. Two.", False)], "Zero.", Node())
    children = search.expand(node, width=2)
    assert [child.text for child in children] == ["Zero. Ten.", "Zero. One."]
    assert children[0].rollouts == [("", True), ("", True), (" Two.", False)]
    assert children[1].value == 0.5 and children[1].parent is node
    assert not children[0].is_end and len(children[0].path()) == 3
    assert [c.text for c in search.expand(node, width=1)] == ["Zero. Ten."]


def test_a_node_of_which_nothing_follows_is_closed_and_so_is_what_is_above():
    root = a_node([(" Two.", True), (" Two.", False)])
    (child,) = search.expand(root, 3)
    assert child.is_end
    search.backpropagate(root, 9)
    assert not root.is_closed
    search.backpropagate(child, 9)
    assert (root.visits, root.total, child.visits, child.total) == (2, 1.0, 1, 0.5)
    assert child.is_closed and root.is_closed and search.select(root, 1.4) is None
    deep = a_node([("A. B. C.", True), ("A. B. C.", False)])
    search.backpropagate(*search.expand(deep, 3), max_depth=1)
    assert deep.is_closed and not deep.children[0].is_end
    silent = a_node([(" </think>", False), ("...", False)])
    assert silent.is_end and search.expand(silent, 3) == [] and silent.is_closed


def test_simulate_fills_up_and_asks_ends_for_nothing():
    asked = []

    def sampler(made, prefixes, seed):
        asked.extend(prefixes)
        return toy_sampler(made, prefixes, seed)

    end = a_node([("", True)], "Red. The answer is yes.")
    half = a_node([(" The answer is no.", False)] * 2, "Red.")
    made = scoring.record("digit", "3")
    search.simulate([(made, end), (made, half)], sampler, is_yes, 5, 1)
    assert asked == ["Red."] * 3 and len(half.rollouts) == 5 and len(end.rollouts) == 1
    search.simulate([(made, end)], sampler, is_yes, 5, 1)
    assert len(asked) == 3 and len(end.rollouts) == 1


def one_way(made, prefixes, seed):
    rng = random.Random(seed)
    path = "One. Two. The answer is"
    return [path[len(p) :] + rng.choice((" yes.", " no.")) if "is" not in p else "" for p in
            prefixes]  # fmt: skip


@pytest.mark.parametrize(
    ("sampler", "status"),
    [
        (lambda made, p, seed: ["The answer is no."] * len(made), "hopeless"),
        (lambda made, p, seed: ["The answer is yes."] * len(made), "solved"),
        (lambda made, p, seed: [""] * len(made), "hopeless"),
    ],
)
def test_questions_that_say_nothing_are_counted_and_give_no_rows(sampler, status):
    tree = toy_tree(sampler)
    assert tree["status"] == status and tree["root"]["children"] == []
    assert tree["sampled"] == SETTINGS.rollouts and search.rows([tree]) == []
    total = search.statistics([tree])[-1]
    assert total[status] == 1 and total["questions"] == total["items"] == 0
    assert total["mean_value"] is None


def test_trees_with_one_child_are_searched_and_counted():
    tree = toy_tree(one_way)
    assert [n["step"] for _, n in search.walk(tree["root"])][:2] == ["One.", "Two."]
    total = search.statistics([tree])[-1]
    assert total["one_child"] == 2 and total["questions"] == 1
    assert tree["sampled"] < SETTINGS.rollouts * 4, "ends are not sampled again"


def test_rows_are_prefixes_in_the_released_schema(tmp_path):
    tree = toy_tree()
    found = search.rows([tree])
    assert found and all(list(row) == list(search.COLUMNS) for row in found)
    (tmp_path / "rows.json").write_text(json.dumps(found), encoding="utf-8")
    read = search.read_processes(tmp_path / "rows.json")
    assert not read.rejects and [r.process for r in read.rows] == [r["process"] for r in found]
    by_text = {row["process"]: row["value"] for row in found}
    for text in by_text:
        if " " in text:  # "Red. The answer is no." stands behind "Red."
            assert text.split(" ")[0] in by_text
            assert by_text[text] == float(text.endswith("yes."))
    assert len({row["index"] for row in found}) == len(found)


def questions(count):
    return [scoring.record("digit", "3", id=f"q/../{i}") for i in range(count)]


def test_a_search_that_was_cut_off_ends_as_if_it_had_not_been(tmp_path):
    made, calls = questions(5), Counter()

    def dying(records, prefixes, seed):
        calls["sampler"] += 1
        if calls["sampler"] > 3:
            raise KeyboardInterrupt
        return toy_sampler(records, prefixes, seed)

    def run(out, sampler):
        return search.search(made, sampler, out, SETTINGS, 1, verifier=is_yes, questions=2)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", dying)
    done = len(list((tmp_path / "cut" / "trees").iterdir()))
    assert 0 < done < 5
    whole = run(tmp_path / "whole", toy_sampler)
    assert run(tmp_path / "cut", toy_sampler) == whole
    assert [tree["record_id"] for tree in whole] == [record.id for record in made]
    assert run(tmp_path / "whole", None) == whole, "nothing is sampled twice"
    with pytest.raises(VlaaError, match=r"other settings \(.*seed 1 instead of 2"):
        search.search(made, toy_sampler, tmp_path / "whole", SETTINGS, 2, questions=2)


def test_statistics_have_the_shape_of_the_pages_table():
    made = [replace(record, source=name) for record, name in zip(questions(2), "ab", strict=True)]
    trees = search.grow(made, toy_sampler, is_yes, SETTINGS, 1)
    *parts, total = search.statistics(trees)
    assert [row["source"] for row in parts] == ["a", "b"] and total["source"] == "sum"
    for key in ("questions", "items", "solved", "hopeless", "one_child", "rollouts"):
        assert sum(row[key] for row in parts) == total[key]
    assert total["items"] == len(search.rows(trees))
    assert json.loads(json.dumps(trees)) == trees


def test_the_drawing_shows_every_step_as_text():
    tree = toy_tree()
    tree["question"] = "<script>alert(1)</script>"
    child = tree["root"]["children"][0]
    child["step"] = '"><img src=x> & ' + "long " * 50
    figure = process_figures.tree(tree)
    (boxes,) = figure.data
    nodes = list(search.walk(tree["root"]))
    assert len(boxes.ids) - 1 == len(nodes) == len(figure.rows) - 1
    place = [row["step"] for row in figure.rows].index(child["step"])
    share = child["right"] / child["rollouts"]
    assert boxes.marker.colors[place] == share and boxes.text[place].startswith(f"{share:.2f}, ")
    assert boxes.labels[place].startswith('"&gt;&lt;img') and boxes.parents[place] == "0"
    ends = sum(node["is_end"] for _, node in nodes)
    assert sum(text.endswith("■") for text in boxes.text) == ends
    assert "<script" not in str(figure.to_plotly_json()) and "<img" not in repr(boxes)
    root = process_figures.tree(toy_tree(lambda made, p, seed: [""] * len(made)))
    assert "hopeless" in root.layout.title.subtitle.text and len(root.data[0].ids) == 1
