"""What the tests of the rewards share: one record, its completion, their score."""

from vlaa_lib import prompts, rewards
from vlaa_lib.records import Record

# options written with a colon, one in LaTeX
COLON = "Which value?\nChoices:\nA: 30\nB: 45\nC: \\frac{1}{2}\nD: dark red"


def record(reward, gt, question="How many objects are left?", id="r1", **options):
    return Record(
        id=id, image="a/b.png", question=question, gt=gt, reward=reward,
        **{"solution": str(gt)} | options,
    )


def wrap(answer):
    return prompts.join_think_answer("I look.", answer)


def score(reward, gt, answer, **options):
    return rewards.score(record(reward, gt, **options), wrap(answer))


def columns(records):
    """Return records as TRL hands them to a reward function: a list a dataset column."""
    rows = [made.to_columns() for made in records]
    return {name: [row[name] for row in rows] for name in rows[0]}
