"""Exercise checks: each takes the reader's function and says in words what is wrong with it.

A check calls the function on cases with known results and raises `NotYet` at the first one that
differs; when all agree it prints one line. The library's own functions pass.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from . import prompts

if TYPE_CHECKING:
    from torch import Tensor

# (arguments, expected result, the rule that the case tests)
Case = tuple[tuple, Any, str]

BARS = {"kind": "bars", "bars": [{"color": "red", "value": 3}, {"color": "blue", "value": 5}]}
OUTCOMES = ("helped", "hurt", "unchanged")


class NotYet(AssertionError):
    """The reader's function differs from what the exercise asks; the message says where and why."""


def _call(fn: Callable, args: tuple, rule: str) -> Any:
    try:
        return fn(*args)
    except Exception as error:  # the reader's code may raise anything; we pass it on explained
        raise NotYet(f"your function raised {error!r} on ({_short(*args)}); here {rule}") from error


def _short(*values: Any) -> str:
    texts = (repr(value.tolist() if hasattr(value, "tolist") else value) for value in values)
    return ", ".join(text if len(text) <= 120 else f"{text[:117]}..." for text in texts)


def _expect(
    name: str, fn: Callable, cases: Iterable[Case],
    same: Callable[[Any, Any], bool] = lambda got, wanted: got == wanted,
) -> None:
    """Call the function on every case; at the first difference explain it."""
    cases = list(cases)
    for args, wanted, rule in cases:
        got = _call(fn, args, rule)
        try:
            agrees = same(got, wanted)
        except (AttributeError, TypeError, ValueError):  # not even the right kind of result
            agrees = False
        if not agrees:
            raise NotYet(
                f"{name}({_short(*args)}) gives {_short(got)}, not {_short(wanted)}: {rule}"
            )
    print(f"{name}: {len(cases)} of {len(cases)} cases agree.")


def _close(got: Any, wanted: float) -> bool:
    return isinstance(got, (int, float)) and math.isclose(got, wanted, abs_tol=1e-6)


def has_aha(fn: Callable[[str], bool]) -> None:
    """Check a reader's `construct.has_aha` (paper §2, step 6)."""
    _expect("has_aha", fn, [
        (("There are two red cubes.",), False, "no keyword is in this text"),
        (("Wait, there are two.",), True, "'wait' is a keyword, whatever its case"),
        (("I COUNT AGAIN.",), True, "the text is lower-cased before the search"),
        (("A checkered floor.",), True,
         "the test is for substrings, so 'checkered' holds 'check'; crude, and the paper's"),
        (("I should confirm this.",), True, "a keyword may be several words long"),
        (("I should add this.",), False, "'i should' alone is not a keyword"),
        (("Alternatively, there are two.",), True, "'alternatively' is one of the eight"),
        (("A mistake.",), True, "'mistake' is one of the eight"),
        (("Hmm.",), True, "'hmm' is one of the eight"),
        (("",), False, "an empty trace holds no keyword"),
    ], same=lambda got, wanted: bool(got) == wanted)


def split_think_answer(fn: Callable[[str], prompts.Parsed]) -> None:
    """Check a reader's `prompts.split_think_answer`: exactly one block each, in order."""
    think = f"{prompts.THINK_OPEN}two and one{prompts.THINK_CLOSE}"
    answer = f"{prompts.ANSWER_OPEN}3{prompts.ANSWER_CLOSE}"
    right = ("two and one", "3", True)
    _expect("split_think_answer", fn, [
        ((think + answer,), right, "this is the format"),
        ((f" {think}\n\n{answer}\n",), right, "white space around the blocks does not matter"),
        (("3",), ("", "", False), "there is no tag at all"),
        ((answer,), ("", "", False), "the think block is missing"),
        ((answer + think,), ("", "", False), "the blocks are in the wrong order"),
        ((think + answer + answer,), ("", "", False), "two answers are no answer"),
        ((f"{think}so{answer}",), ("", "", False), "there is text between the blocks"),
        ((think + answer.replace("3", " "),), ("", "", False), "the answer block is empty"),
        ((think + answer.removesuffix(prompts.ANSWER_CLOSE),), ("", "", False),
         "a completion that was cut off has no closing tag"),
    ], same=lambda got, wanted: (got.think, got.answer, got.problem is None) == wanted)


def iou(fn: Callable[[tuple, tuple], float]) -> None:
    """Check a reader's intersection over union of two boxes (paper figure 4, IoU)."""
    box, nothing = (0.0, 0.0, 0.4, 0.4), (0.2, 0.2, 0.2, 0.6)
    _expect("iou", fn, [
        ((box, box), 1.0, "a box covers itself"),
        ((box, (0.6, 0.6, 0.9, 0.9)), 0.0, "the boxes are apart in both directions"),
        ((box, (0.0, 0.6, 0.4, 0.9)), 0.0, "the boxes share columns but no row"),
        ((box, (0.4, 0.0, 0.8, 0.4)), 0.0, "the boxes touch at an edge, which has no area"),
        ((box, (0.2, 0.0, 0.6, 0.4)), 1 / 3,
         "half of each is shared: 0.08 over a union of 0.24, not over one box's area"),
        (((0.1, 0.1, 0.3, 0.3), box), 0.25, "a box inside another: small area over large area"),
        ((box, nothing), 0.0, "a box without width covers nothing"),
        ((nothing, nothing), 0.0, "two boxes without area: 0, not a division by zero"),
    ], same=_close)


def relative(fn: Callable[[float, float, float], float]) -> None:
    """Check a reader's open reward of S(y'), S(y) and beta (paper §4)."""
    _expect("relative", fn, [
        ((1.0, 0.0, 1.0), 1 - math.exp(-1), "one point better at beta 1: 1 - exp(-1)"),
        ((3.0, 2.0, 1.0), 1 - math.exp(-1), "only the difference counts, not the level"),
        ((2.0, 2.0, 1.0), 0.0, "as good as the reference is not better: 0"),
        ((0.0, 2.0, 1.0), 0.0, "worse earns 0, never less: a reward lies in [0, 1]"),
        ((1.0, 0.0, 0.1), 1 - math.exp(-0.1), "a small beta counts each point for little"),
        ((50.0, 0.0, 3.0), 1.0, "far better comes as near to 1 as a number can, and not above"),
        ((-1.0, -2.0, 1.0), 1 - math.exp(-1), "scores may be negative; the difference is not"),
    ], same=_close)


def choose(fn: Callable[[str, dict[str, str]], tuple[str | None, str]]) -> None:
    """Check a reader's `choices.choose`: (the one choice named, "") or (None, what is wrong)."""
    choices = {"A": "red", "B": "dark blue", "C": "30"}
    cases: list[tuple[str, str | None, str]] = [
        ("B", "B", "a letter alone names its choice"),
        ("(b).", "B", "brackets, a stop and the letter's case do not matter"),
        (r"$\boxed{\text{B}}$", "B", "LaTeX around the letter does not matter"),
        ("The correct option is B", "B", "a lead-in is not part of the answer"),
        ("Dark Blue", "B", "the exact text of one choice names it"),
        ("B. dark blue", "B", "letter and text agree"),
        ("B. red", None, "letter and text disagree"),
        ("A or B", None, "two candidates are no answer"),
        ("not B", None, "a denial names nothing"),
        ("A dark cube", None, "this A is an article"),
        ("A B C", None, "all letters name none"),
        ("D", None, "there is no such choice"),
        ("blue", None, "part of a choice's text is not its text"),
    ]
    _expect(
        "choose", fn, [((text, choices), letter, rule) for text, letter, rule in cases],
        same=lambda got, wanted: got[0] == wanted and bool(got[1]) == (wanted is None),
    )


def worked_labels(prompt: list[int], completion: list[int], num_padding: int = 0) -> list[int]:
    """Return training labels: the completion's tokens, -100 (no loss) for all others (paper §3).

    TRL does this inside its data collator; here it stands alone to be read.

    >>> worked_labels([5, 6], [7, 8], num_padding=1)
    [-100, -100, 7, 8, -100]
    """
    return [-100] * len(prompt) + list(completion) + [-100] * num_padding


def completion_labels(fn: Callable[[list[int], list[int], int], list[int]]) -> None:
    """Check a reader's labels of a prompt, a completion and padding; `worked_labels` passes."""
    _expect("completion_labels", fn, [
        (([5, 6], [7, 8], 0), [-100, -100, 7, 8], "a prompt token is given, never learnt"),
        (([5], [7], 2), [-100, 7, -100, -100], "padding carries no loss either"),
        (([], [7, 8], 1), [7, 8, -100], "without a prompt every completion token counts"),
        (([5, 6], [], 0), [-100, -100], "an empty completion teaches nothing"),
        (([7, 8], [7, 8], 0), [-100, -100, 7, 8],
         "the place decides, not the token: the same ids stand in the prompt"),
    ], same=lambda got, wanted: list(got) == wanted)


def accumulation(fn: Callable[[int, int], int]) -> None:
    """Check a reader's `profiles.accumulation` on one process."""
    _expect("accumulation", fn, [
        ((16, 16), 1, "one forward pass holds the whole batch"),
        ((128, 8), 16, "16 passes of 8 make the paper's 128"),
        ((12, 4), 3, "3 passes of 4 make 12"),
    ])
    for batch, per_device in ((128, 12), (8, 16)):
        try:
            got = fn(batch, per_device)
        except ValueError:
            continue
        raise NotYet(
            f"accumulation({batch}, {per_device}) gives {got!r}: {batch} is no multiple of "
            f"{per_device}, so raise a ValueError instead of training with another batch"
        )


def group_advantages(fn: Callable[[Tensor], Tensor]) -> None:
    """Check a reader's group advantages, [B, G] to [B, G]; `train.objective.advantages` passes."""
    import torch

    high, low = 0.5 / (math.sqrt(1 / 3) + 1e-4), 0.75 / (0.5 + 1e-4)
    cases = [
        ([[1.0, 1.0, 1.0, 1.0]], [[0.0] * 4], "all right: no completion is better than another"),
        ([[0.0, 0.0, 0.0, 0.0]], [[0.0] * 4], "all wrong: nothing to learn, and no NaN"),
        ([[1.0, 0.0, 1.0, 0.0]], [[high, -high, high, -high]],
         "mean 0.5, standard deviation 0.577 (n - 1 in the denominator) plus 1e-4"),
        ([[1.0, 0.0, 0.0, 0.0]], [[low, -low / 3, -low / 3, -low / 3]],
         "a rare success weighs more than each of the failures around it"),
        ([[1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]], [[high, -high, high, -high], [0.0] * 4],
         "each row is a group of its own: the second must not move the first"),
    ]
    _expect(
        "group_advantages", fn,
        [((torch.tensor(given),), torch.tensor(wanted), rule) for given, wanted, rule in cases],
        same=lambda got, wanted: got.shape == wanted.shape
        and torch.allclose(got, wanted, atol=1e-5),
    )


def extract_answer(fn: Callable[[str], tuple[str, str]]) -> None:
    """Check a reader's `evaluate.extract_answer`: from the tags, from a plain reply, or none."""
    tagged, other = (prompts.join_think_answer("two and one", answer) for answer in "34")
    opening, closing = prompts.ANSWER_OPEN, prompts.ANSWER_CLOSE
    cases = [
        ((tagged,), ("3", "tags"), "the answer block holds the answer"),
        (("3",), ("3", "plain"), "a reply without any tag is the answer itself"),
        ((" B \n",), ("B", "plain"), "white space around a plain reply does not count"),
        ((f"{prompts.THINK_OPEN}two and one",), ("", ""), "a thought that was cut off: no answer"),
        ((f"{tagged[:-len(closing)]}",), ("", ""), "an answer that was cut off is none"),
        ((tagged + other,), ("", ""), "two answers that differ are no answer"),
        ((f"{opening}3{closing}",), ("3", ""), "an answer block alone still holds an answer"),
    ]
    _expect(
        "extract_answer", fn, cases,
        same=lambda got, wanted: got[0] == wanted[0] and bool(got[1]) and (
            got[1] == wanted[1] if wanted[1] else got[1] not in ("tags", "plain")),
    )


def bootstrap(fn: Callable[[list[float]], tuple[float, float]]) -> None:
    """Check a reader's 95 % percentile bootstrap interval of a mean, by what it must do."""
    rng = random.Random(0)
    _expect("bootstrap", fn, [(([1.0] * 8,), (1.0, 1.0), "rows that all agree leave no doubt")],
            same=lambda got, wanted: all(_close(g, w) for g, w in zip(got, wanted, strict=True)))
    small = [float(rng.random() < 0.3) for _ in range(50)]
    for rows in (small, small * 16):
        low, high = _call(fn, (rows,), "the interval of a mean is asked for")
        mean = sum(rows) / len(rows)
        sigma = math.sqrt(mean * (1 - mean) / len(rows))  # standard error of a share
        if not low < mean < high:
            raise NotYet(f"bootstrap: ({low:.3f}, {high:.3f}) does not hold the mean {mean:.3f}")
        # 95 % of a normal law lie within 3.92 standard errors
        if not 3.0 < (width := (high - low) / sigma) < 4.8:
            raise NotYet(
                f"bootstrap: on {len(rows)} rows the interval is {width:.1f} standard errors of "
                "the mean wide; 95 % should be near 3.9. Resample as many rows as there are, with "
                "replacement, average each resample, take the 2.5 % and 97.5 % quantiles."
            )
    print("bootstrap: holds the mean, and narrows as rows are added.")


def wemath_class(fn: Callable[[list[bool], bool, bool], str]) -> None:
    """Check a reader's `evaluate.metrics.wemath_class`: CM, RM, IG or IK, strict and loose."""
    yes, no = True, False
    _expect("wemath_class", fn, [
        (([yes, yes], yes, no), "CM", "every step and the whole: complete mastery"),
        (([yes, yes], no, no), "IG", "the steps without the whole: inadequate generalisation"),
        (([yes, no], yes, no), "RM", "strict: the whole without each step is memorised"),
        (([yes, no], yes, yes), "CM", "loose: any one step is enough"),
        (([no, no], yes, yes), "RM", "loose: with no step at all it is still memorised"),
        (([yes, no], no, no), "IK", "neither each step nor the whole: knowledge is missing"),
        (([yes, no], no, yes), "IK", "loose is kinder only where the whole is right"),
        (([yes, yes, no], yes, no), "RM", "a problem may have three steps"),
    ])


def mcnemar(fn: Callable[[int, int], float]) -> None:
    """Check a reader's `compare.mcnemar`: the exact two-sided p-value of rows that differ."""
    _expect("mcnemar", fn, [
        ((0, 5), 1 / 16, "five coins on one side: 2 of 32 outcomes, for either side may be it"),
        ((5, 0), 1 / 16, "which model comes first does not matter"),
        ((1, 4), 12 / 32, "at most one against: 1 + 5 outcomes, twice, of 32"),
        ((3, 3), 1.0, "no side leads; a probability is never above 1"),
        ((0, 0), 1.0, "models that never differ give no evidence"),
        ((0, 1), 1.0, "a single coin always falls on some side"),
    ], same=_close)


def check_steps(fn: Callable[[str, dict], list]) -> None:
    """Check a reader's `traces.check_steps`: true, false or not checkable, sentence by sentence."""
    wrapped = prompts.join_think_answer("The red bar reaches 3.", "The blue bar reaches 2.")
    _expect("check_steps", fn, [
        (("The red bar reaches 3.", BARS), [True], "the scene says so"),
        (("The red bar reaches 4.", BARS), [False], "the scene says 3"),
        (("Hmm, let me look.", BARS), [None], "no fact is stated, so nothing can be checked"),
        (("There are 2 red cubes.", BARS), [None], "a scene of bars cannot tell about cubes"),
        (("The red bar reaches 3. Wait, the blue bar reaches 4.", BARS), [True, False],
         "each sentence is held against the scene, hesitant ones too"),
        ((wrapped, BARS), [True, False], "tags are no sentences, and the answer is a step too"),
        (("", BARS), [], "an empty trace has no step"),
    ], same=lambda got, wanted: [step.truth for step in got] == wanted)


def corrections(fn: Callable[[str, dict | None], dict]) -> None:
    """Check a reader's `traces.corrections`: what second thoughts change, by outcome."""
    red, wrong = "The red bar reaches 3.", "The red bar reaches 4."
    cases = [
        (f"{wrong} Wait. {red}", (1, 0, 0), "false before the doubt and true after it"),
        (f"{red} Wait. {wrong}", (0, 1, 0), "true before the doubt and false after it"),
        (f"{red} Hmm. {red}", (0, 0, 1), "the same again changes nothing"),
        (f"{wrong} Hmm. The red bar reaches 6.", (0, 0, 1), "false before and false after"),
        (f"{wrong} {red}", (0, 0, 0), "nobody doubted"),
        (f"{red} Wait.", (0, 0, 0), "nothing is said after the doubt"),
        (f"{wrong} Wait, the blue bar reaches 5.", (0, 0, 0), "another bar was never spoken of"),
        (f"{wrong} Wait. {red} {red}", (1, 0, 0), "only the first word after the doubt counts"),
        ("", (0, 0, 0), "an empty trace holds no second thought"),
    ]
    _expect("corrections", fn, [
        *(((text, BARS), dict(zip(OUTCOMES, counts, strict=True)), rule)
          for text, counts, rule in cases),
        ((f"{red} Wait. {wrong}", None), dict.fromkeys(OUTCOMES),
         "without a scene nobody knows: None"),
    ])


def last_n(fn: Callable[[list[float], int], float]) -> None:
    """Check a reader's mean of the last n step scores; `aggregate.last_n` passes."""
    nan = math.nan
    _expect("last_n", fn, [
        (([0.1, 0.5, 1.0], 2), 0.75, "the last two of three steps"),
        (([0.1, 0.5, 1.0], 1), 1.0, "n = 1 is the last step alone, the outcome reward"),
        (([0.2, 0.6], 8), 0.4, "where there are fewer steps, all of them count, and no others"),
        (([0.926, 0.93, 0.297], 3), 2.153 / 3, "all three: one of the paper's worked means, .718"),
        (([0.4, nan, 0.8], 3), 0.6, "a step without a score is left out, not counted as 0"),
        (([0.4, nan], 1), nan, "the last step has no score, so neither has the solution"),
        (([], 2), nan, "an empty solution has no score, and no division by zero"),
    ], same=lambda got, wanted: _close(got, wanted) or (math.isnan(got) and math.isnan(wanted)))


def best_candidate(fn: Callable[[list[float], list[bool]], Any]) -> None:
    """Check a reader's worth of the best candidate; `aggregate.choose` passes.

    A number is taken, or what has an `accuracy`.
    """
    nan = math.nan
    _expect("best_candidate", fn, [
        (([0.2, 0.9, 0.5], [False, True, False]), 1.0, "the highest score is a right answer's"),
        (([0.9, 0.2, 0.5], [False, True, True]), 0.0, "the highest score decides, not the average"),
        (([4, 5, 5], [True, True, False]), 0.5, "two share the highest score, one is right"),
        (([5, 5, 5, 5], [False, False, False, True]), 0.25, "all tie: one drawn at random"),
        (([nan, 0.3, 0.2], [True, False, True]), 0.0, "without a score nobody is chosen"),
        (([nan, nan], [True, False]), 0.5, "no scores at all: one drawn at random"),
        (([0.1 + 0.2, 0.3], [False, True]), 0.5, "0.1 + 0.2 is 0.3 but for the last bit: a tie"),
        (([], []), 0.0, "no candidate, no right answer"),
    ], same=lambda got, wanted: _close(getattr(got, "accuracy", got), wanted))


def uct(fn: Callable[[Any, float], float]) -> None:
    """Check a reader's upper confidence bound of a node; `process.search.uct` passes."""
    from .process.search import Node

    root = Node("root", visits=10)
    root.total = 4.0

    def child(visits: int, total: float) -> Any:
        return Node("step", root, visits=visits, total=total)

    spread = math.sqrt(math.log(10))
    _expect("uct", fn, [
        ((child(4, 2.0), 0.0), 0.5, "without exploration it is the mean of what was backed up"),
        ((child(1, 0.0), 1.0), spread, "one visit of ten, nothing won: all is exploration"),
        ((child(4, 2.0), 1.4), 0.5 + 1.4 * spread / 2, "the bound shrinks with the node's visits"),
        ((child(9, 9.0), 0.7), 1.0 + 0.7 * spread / 3, "the parent's visits are in the logarithm"),
    ], same=_close)
