"""The micro-world: same seed same sample, disjoint splits, a grammar that reads itself."""

import random
from collections import Counter
from itertools import islice

import pytest

from vlaa_lib import records, rewards
from vlaa_lib.pocket import microworld
from vlaa_lib.pocket.microworld import facts, narrator, questions, scenes, solve, truth

SAMPLES = [
    microworld.generate(source, "train", index)
    for source in microworld.SOURCES
    for index in range(40)
]
NO_NOISE = narrator.Rates(0, 0, 0, 0, 0)


def scene_of(sample):
    return sample.record.meta["scene"]


def test_same_arguments_same_sample():
    for source in microworld.SOURCES:
        a, b = (microworld.generate(source, "test", 7, seed=3) for _ in range(2))
        assert a.record == b.record
        assert a.image.tobytes() == b.image.tobytes()
        other = microworld.generate(source, "test", 7, seed=4)
        assert other.record.meta != a.record.meta


@pytest.mark.parametrize("kind", scenes.KINDS)
def test_no_picture_is_in_two_splits(kind):
    """Painted in one style, since another ground or colour does not make another scene."""
    rng, owner, style = random.Random(0), {}, None
    for split in microworld.SPLITS:
        for _ in range(800 if split == "pretrain" else 200):
            scene = scenes.draw(kind, split, rng)
            style = style or scene["style"]
            picture = microworld.render(scene | {"style": style}).tobytes()
            assert owner.setdefault(picture, split) == split, scene


# what stands in a list whose order the picture does not show is drawn in one order, this one
ORDER = {
    "objects": lambda thing: [int(2 * (thing["box"][i] + thing["box"][i + 2])) for i in (1, 0)],
    "scatter": lambda point: (point["color"], point["y"], point["x"]),
    "function": lambda curve: curve["color"],
}


@pytest.mark.parametrize("kind", scenes.KINDS)
def test_a_picture_is_one_scene_whatever_the_order_of_its_parts(kind):
    rng = random.Random(1)
    for _ in range(60):
        scene = scenes.draw(kind, "test", rng)
        picture = microworld.render(scene).tobytes()
        for key, parts in scene.items():
            if not isinstance(parts, list) or key == "equal":  # names its corners, in their order
                continue
            turned = parts[::-1]
            if turned != parts and microworld.render(scene | {key: turned}).tobytes() == picture:
                assert parts == sorted(parts, key=ORDER[kind]), scene


def test_every_bucket_has_one_split_and_every_question_four_wordings():
    taken = [bucket for buckets in microworld.SPLITS.values() for bucket in buckets]
    assert sorted(taken) == list(range(16))
    asked = {k for kinds in questions.KINDS.values() for ks in kinds.values() for k in ks}
    assert asked == set(questions.WORDINGS)
    assert all(len(set(wordings)) >= 4 for wordings in questions.WORDINGS.values())


def test_gold_passes_its_own_verifier():
    assert rewards.audit([sample.record for sample in SAMPLES]) == []


def test_every_wording_of_a_question_and_of_a_fact_is_read_back():
    rng = random.Random(0)
    for sample in SAMPLES:
        asked, scene = questions.read(sample.record.question), scene_of(sample)
        assert asked.kind in questions.KINDS[sample.record.source][scene["kind"]]
        known = truth.knowledge(scene)
        solution = solve.solve(asked, known)
        if sample.record.source != "describe":
            assert solution.answer == sample.record.solution
        for fact in (*known, *solution.steps):
            assert all(facts.read(facts.say(fact, rng)) == fact for _ in range(6))
            assert truth.holds(fact, scene) is True


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("There are 2 red cubes.", True),
        ("So, there are two red blocks", True),
        ("Wait, there is 1 red cube.", False),
        ("there are 3 objects", True),
        ("There are no blue balls.", False),
        ("The blue ball is at the top left.", True),
        ("The blue ball spans [0.00, 0.00, 0.20, 0.20].", True),
        ("The blue ball spans [0.60, 0.60, 0.80, 0.80].", False),
        ("1 + 2 = 3", True),
        ("1 + 2 = 4", False),
        ("I like cubes.", None),
        ("The red bar reaches 3.", None),
        ("There are many red cubes", None),
    ],
)
def test_sentences_are_held_against_the_scene(sentence, expected):
    scene = {
        "kind": "objects",
        "objects": [
            {"shape": "ball", "color": "blue", "size": "big", "box": [0.0, 0.0, 0.2, 0.2]},
            {"shape": "cube", "color": "red", "size": "big", "box": [0.5, 0.0, 0.7, 0.2]},
            {"shape": "cube", "color": "red", "size": "big", "box": [0.5, 0.5, 0.7, 0.7]},
        ],
    }
    found = facts.read(sentence)
    assert (truth.holds(found, scene) if found else None) is expected


def test_a_perfect_caption_leads_the_teacher_to_the_gold():
    rng = random.Random(1)
    for sample in SAMPLES:
        told = narrator.caption(scene_of(sample), NO_NOISE, rng)
        think, answer = narrator.reason(told, sample.record.question, NO_NOISE, rng)
        stated = facts.extract(think)
        assert stated and all(truth.holds(fact, scene_of(sample)) for fact in stated)
        if sample.record.source != "describe":
            assert answer == sample.record.solution


def test_a_lossy_caption_makes_the_teacher_wrong_about_as_often_as_the_rates_say():
    rng, rates = random.Random(2), narrator.Rates(0, 0, miscount=1.0, hesitate=0)
    bars = [scene for scene in map(scene_of, SAMPLES) if scene["kind"] == "bars"]
    told = [(fact, scene) for scene in bars
            for fact in facts.extract(narrator.caption(scene, rates, rng))]  # fmt: skip
    assert len(told) > 2 * len(bars) and not any(truth.holds(*pair) for pair in told)


def test_hesitation_follows_its_rate():
    from vlaa_lib.prompts import has_aha

    def share(hesitate):
        rates, rng = narrator.Rates(0, 0, 0, hesitate, 0), random.Random(3)
        captions = ((s, narrator.caption(scene_of(s), rates, rng)) for s in SAMPLES)
        told = [narrator.reason(text, s.record.question, rates, rng)[0] for s, text in captions]
        return sum(map(has_aha, told)) / len(told)

    assert share(0.0) == 0.0
    assert 0.2 < share(0.5) < 0.8
    assert share(0.5) < share(1.0)


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("What is love?", "no known question"),
        ("Where is the red cube? Give its box.", "no red cube is described"),
        ("How high is the red bar?", "no bar is described"),
    ],
)
def test_teacher_says_when_it_cannot_answer(question, said):
    with pytest.raises(narrator.CannotAnswer, match=said):
        narrator.reason("There is 1 cube.", question, NO_NOISE, random.Random(0))


@pytest.mark.parametrize(
    ("scene", "text"),
    [
        ({"family": "line", "a": 1, "h": 0, "k": 0}, "y = x"),
        ({"family": "line", "a": -3, "h": 0, "k": -4}, "y = -3x - 4"),
        ({"family": "absolute", "a": -1, "h": 2, "k": 1}, "y = -|x - 2| + 1"),
        ({"family": "parabola", "a": 1, "h": 0, "k": 3}, "y = x^2 + 3"),
    ],
)
def test_expression(scene, text):
    assert scenes.expression(scene) == text


def test_a_split_reads_back_and_a_stream_repeats_no_scene(tmp_path):
    made = microworld.write_split(tmp_path, ["solids", "locate"], "dev", 3)
    loaded = records.load(tmp_path / "records.jsonl", tmp_path / "images")
    assert loaded.records == made and not loaded.rejects
    for source in microworld.SOURCES:
        drawn = [scene_of(s) for s in islice(microworld.stream(source, "test"), 60)]
        shown = [repr({k: v for k, v in scene.items() if k != "style"}) for scene in drawn]
        assert len(set(shown)) == 60


def test_levels_are_kept_and_written_down():
    for source in microworld.SOURCES:
        for level in microworld.LEVELS:
            sample = microworld.generate(source, "train", 0, level=level)
            assert sample.record.meta["level"] == scene_of(sample)["level"] == level
    drawn = [scenes.draw("objects", "dev", random.Random(0), level) for level in microworld.LEVELS]
    objects = [len(scene["objects"]) for scene in drawn]
    assert objects == sorted(set(objects))


def test_every_source_has_its_paper_counterpart_and_reward():
    stands_for = {name for _, name in microworld.SOURCES.values()}
    assert stands_for == {
        "CLEVR-Math", "GeoQA170K", "Math PUMA", "ArxivQA", "DocVQA", "VizWiz", "ALLaVA-LAION",
        "COCO", "VisualGenome",
    }  # fmt: skip
    rewards_of = Counter(reward for reward, _ in microworld.SOURCES.values())
    assert rewards_of == {"digit": 1, "mcq": 2, "math": 1, "open": 3, "iou": 2}  # paper figure 4


@pytest.mark.parametrize(
    ("sentence", "found"),
    [
        ("There are 2 red cubes and 1 blue ball", [(2, "red", "cube"), (1, "blue", "ball")]),
        ("I see 2 cubes, so there are no balls", [(2, "", "cube"), (0, "", "ball")]),
        ("The red and blue angles are equal", [("red", "blue")]),
        ("I notice that next to room stands 1", [("room", "1")]),
        ("2 + 1 makes 3", [("2 + 1", 3)]),
        ("Cubes and balls", []),
    ],
)
def test_joined_sentences_are_read_fact_by_fact(sentence, found):
    assert [fact.args for fact in facts.read_all(sentence)] == found


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("x", "train", 0), "unknown source 'x'"),
        (("solids", "x", 0), "unknown split 'x'"),
        (("solids", "dev", 0, 0, 4), "unknown level 4"),
    ],
)
def test_unknown_names_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        microworld.generate(*given)
