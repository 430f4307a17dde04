"""The micro-world: same seed same sample, disjoint splits, a grammar that reads itself."""

import random

import pytest

from vlaa_lib import microworld, records, rewards
from vlaa_lib.microworld import facts, narrator, questions, scenes

SAMPLES = [
    microworld.generate(source, "train", index)
    for source in microworld.SOURCES
    for index in range(40)
]
NO_NOISE = narrator.Rates(omit=0, confuse=0, miscount=0, hesitate=0)


def scene_of(sample):
    return sample.record.meta["scene"]


def test_same_arguments_same_sample():
    for source in microworld.SOURCES:
        a, b = (microworld.generate(source, "test", 7, seed=3) for _ in range(2))
        assert a.record == b.record
        assert a.image.tobytes() == b.image.tobytes()
        other = microworld.generate(source, "test", 7, seed=4)
        assert other.record.meta != a.record.meta


def test_no_scene_is_in_two_splits():
    owner = {}
    for split in microworld.SPLITS:
        for source in microworld.SOURCES:
            for index in range(60):
                scene = dict(scene_of(microworld.generate(source, split, index)))
                scene.pop("style")
                assert owner.setdefault(repr(scene), split) == split
    taken = [bucket for buckets in microworld.SPLITS.values() for bucket in buckets]
    assert sorted(taken) == list(range(16))


def test_every_source_has_three_wordings_a_question():
    for kinds in questions.KINDS.values():
        assert all(len(set(questions.WORDINGS[kind])) >= 3 for kind in kinds)


def test_gold_passes_its_own_verifier():
    assert rewards.audit([sample.record for sample in SAMPLES]) == []


def test_questions_are_read_back_in_every_wording():
    for sample in SAMPLES:
        asked = questions.read(sample.record.question)
        assert asked.kind in questions.KINDS[sample.record.source]
        if sample.record.source != "describe":
            solution = questions.solve(asked, questions.knowledge(scene_of(sample)))
            assert solution.answer == sample.record.solution


def test_every_phrase_reads_back_as_the_fact_it_was_made_from():
    rng = random.Random(0)
    for sample in SAMPLES:
        solution = questions.solve(
            questions.read(sample.record.question), questions.knowledge(scene_of(sample))
        )
        for fact in (*questions.knowledge(scene_of(sample)), *solution.steps):
            for _ in range(6):
                assert facts.read(facts.say(fact, rng)) == fact
            assert facts.holds(fact, scene_of(sample)) is True


@pytest.mark.parametrize(
    ("sentence", "truth"),
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
def test_sentences_are_held_against_the_scene(sentence, truth):
    scene = {
        "kind": "objects",
        "objects": [
            {"shape": "ball", "color": "blue", "size": "big", "box": [0.0, 0.0, 0.2, 0.2]},
            {"shape": "cube", "color": "red", "size": "big", "box": [0.5, 0.0, 0.7, 0.2]},
            {"shape": "cube", "color": "red", "size": "big", "box": [0.5, 0.5, 0.7, 0.7]},
        ],
    }
    fact = facts.read(sentence)
    assert (facts.holds(fact, scene) if fact else None) is truth


def test_a_perfect_caption_leads_the_teacher_to_the_gold():
    rng = random.Random(1)
    for sample in SAMPLES:
        told = narrator.caption(scene_of(sample), NO_NOISE, rng)
        think, answer = narrator.reason(told, sample.record.question, NO_NOISE, rng)
        stated = facts.extract(think)
        assert stated and all(facts.holds(fact, scene_of(sample)) for fact in stated)
        if sample.record.source != "describe":
            assert answer == sample.record.solution


def test_a_lossy_caption_makes_the_teacher_wrong_about_as_often_as_the_rates_say():
    rng, wrong = random.Random(2), 0
    rates = narrator.Rates(omit=0.0, confuse=0.0, miscount=1.0, hesitate=0.0)
    bars = [s for s in SAMPLES if s.record.source == "panel"]
    for sample in bars:
        told = facts.extract(narrator.caption(scene_of(sample), rates, rng))
        wrong += sum(not facts.holds(fact, scene_of(sample)) for fact in told)
    assert wrong >= 3.5 * len(bars)  # four bars a picture; at value 1 a step down is no step


def test_hesitation_follows_its_rate():
    from vlaa_lib.construct.split import has_aha

    def share(hesitate):
        rates, rng = narrator.Rates(0, 0, 0, hesitate), random.Random(3)
        told = [
            narrator.reason(
                narrator.caption(scene_of(s), rates, rng), s.record.question, rates, rng
            )[0]
            for s in SAMPLES
        ]
        return sum(map(has_aha, told)) / len(told)

    assert share(0.0) == 0.0
    assert 0.2 < share(0.5) < 0.8
    assert share(0.5) < share(1.0)


def test_teacher_says_when_it_cannot_answer():
    with pytest.raises(narrator.CannotAnswer, match="no known question"):
        narrator.reason("There is 1 cube.", "What is love?", NO_NOISE, random.Random(0))
    with pytest.raises(narrator.CannotAnswer, match="no red cube is described"):
        narrator.reason(
            "There is 1 cube.", "Where is the red cube? Give its box.", NO_NOISE, random.Random(0)
        )


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


def test_write_split_reads_back(tmp_path):
    made = microworld.write_split(tmp_path, ["solids", "locate"], "dev", 3)
    loaded = records.load(tmp_path / "records.jsonl", tmp_path / "images")
    assert loaded.records == made and not loaded.rejects


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown source 'x'"):
        microworld.generate("x", "train", 0)
    with pytest.raises(ValueError, match="unknown split 'x'"):
        microworld.generate("solids", "x", 0)
