"""Tree search for process rewards: Monte-Carlo tree search whose nodes are reasoning steps.

The accessible parts of the paper name the engine and show a tree, not its formulas. Ours: UCT over
the mean of what was backed up; a node's value is the share of rollouts from it whose answer is
right by the record's own verifier, so that a label is an estimate of one defined number.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vlaa_lib import folders
from vlaa_lib.images import MAX_PIXELS, problem_of
from vlaa_lib.records import Record, RecordError, Reject, check, image_below, iter_file

from . import steps

if TYPE_CHECKING:
    from vlaa_lib.models import Policy
    from vlaa_lib.profiles import Search

# records, the text that each answer begins with, a seed -> how each goes on to its end
Sampler = Callable[[list[Record], list[str], int], list[str]]
# records and whole completions -> whether each answer is right
Verifier = Callable[[list[Record], list[str]], list[bool]]
Tree = dict[str, Any]  # as it is stored: record_id, image, question, status, rollouts, root


@dataclass(eq=False)
class Node:
    """A partial answer that ends at the end of a step; the root is empty."""

    text: str = ""  # the answer from its beginning up to this step's end
    parent: Node | None = None
    children: list[Node] = field(default_factory=list)
    # how the policy went on from here, and whether the answer was right
    rollouts: list[tuple[str, bool]] = field(default_factory=list)
    visits: int = 0  # values that were backed up through this node
    total: float = 0.0  # their sum
    is_closed: bool = False  # nothing is left to try here or below

    @property
    def value(self) -> float:
        """Share of right answers among the rollouts; NaN without any."""
        told = [right for _, right in self.rollouts]
        return sum(told) / len(told) if told else math.nan

    @property
    def is_end(self) -> bool:
        """Whether every rollout so far stopped here, so that no step follows."""
        return bool(self.rollouts) and not any(steps.spans(text) for text, _ in self.rollouts)

    @property
    def status(self) -> str:
        """Whether a tree of this root says anything about steps."""
        return {0.0: "hopeless", 1.0: "solved"}.get(self.value, "searched")

    def path(self) -> list[Node]:
        """Return the node, its parent and so on up to the root."""
        return [self, *(self.parent.path() if self.parent else [])]

    def close(self) -> None:
        """Close the node, and each node above whose children are all closed."""
        for node in self.path():
            node.is_closed = node is self or all(child.is_closed for child in node.children)

    def to_json(self) -> dict[str, Any]:
        """Return what is kept; the rollouts' texts are not, they are most of a search."""
        return {
            "step": self.text[len(self.parent.text) if self.parent else 0 :].strip(),
            "text": self.text,
            "right": sum(right for _, right in self.rollouts),
            "rollouts": len(self.rollouts),
            "visits": self.visits,
            "is_end": self.is_end,
            "children": [child.to_json() for child in self.children],
        }


def uct(node: Node, exploration: float) -> float:
    """Return the upper confidence bound that selection goes by (Kocsis and Szepesvari 2006)."""
    spread = math.sqrt(math.log(node.parent.visits) / node.visits)
    return node.total / node.visits + exploration * spread


def select(root: Node, exploration: float) -> Node | None:
    """Phase 1: go down by the largest bound to a node without children; None if all is closed.

    Closed nodes are passed over: below them nothing is left to try. Ties: the older child.
    """
    if root.is_closed:
        return None
    node = root
    while node.children:
        open_ = [child for child in node.children if not child.is_closed]
        node = max(open_, key=lambda child: uct(child, exploration))
    return node


def expand(node: Node, width: int) -> list[Node]:
    """Phase 2: give a simulated node its children, the next steps that its rollouts took.

    A rollout is a sample of the policy, so its next step is one as well and costs nothing. Equal
    steps are one child, with the rollouts that took them; of more than `width` the most frequent.
    """
    found: dict[str, Node] = {}
    for text, right in node.rollouts:
        whole = node.text + text
        # where the first step that begins behind the node ends; None where no word follows
        ends = (end for _, end in steps.spans(whole) if steps.spans(whole[len(node.text) : end]))
        if (end := next(ends, None)) is not None:
            child = found.setdefault(whole[:end], Node(whole[:end], node))
            child.rollouts.append((whole[end:], right))
    node.children = sorted(found.values(), key=lambda child: -len(child.rollouts))[:width]
    if not node.children:
        node.close()
    return node.children


def simulate(
    asked: Sequence[tuple[Record, Node]], sampler: Sampler, verifier: Verifier, k: int, seed: int
) -> None:
    """Phase 3: fill each node that is no end up to k rollouts, in one call of the sampler."""
    todo = [pair for pair in asked if not pair[1].is_end
            for _ in range(k - len(pair[1].rollouts))]  # fmt: skip
    if not todo:
        return
    made = [record for record, _ in todo]
    texts = sampler(made, [node.text for _, node in todo], seed)
    right = verifier(made, [node.text + text for (_, node), text in zip(todo, texts, strict=True)])
    for (_, node), text, is_right in zip(todo, texts, right, strict=True):
        node.rollouts.append((text, bool(is_right)))


def backpropagate(node: Node, max_depth: int) -> None:
    """Phase 4: add a node's value to every node up to the root; close what has nothing left."""
    for above in node.path():
        above.visits += 1
        above.total += node.value
    if node.is_end or len(node.path()) > max_depth:
        node.close()


def grow(
    made: Sequence[Record], sampler: Sampler, verifier: Verifier, s: Search, seed: int
) -> list[Tree]:
    """Search the trees of some questions together, so that every call of the sampler is large."""
    roots, sampled = [Node() for _ in made], Counter()
    fresh = list(enumerate(roots))
    for turn in range(s.iterations + 1):
        for i, node in fresh:
            sampled[i] += 0 if node.is_end else s.rollouts - len(node.rollouts)
        simulate([(made[i], node) for i, node in fresh], sampler, verifier, s.rollouts, seed + turn)
        for _, node in fresh:
            backpropagate(node, s.max_depth)
        # where first rollouts are all right (solved) or all wrong (hopeless) nothing is said
        # about steps, and the tree stays a root
        leaves = [(i, select(root, s.exploration)) for i, root in enumerate(roots)
                  if root.status == "searched" and turn < s.iterations]  # fmt: skip
        fresh = [(i, child) for i, leaf in leaves if leaf for child in expand(leaf, s.width)]
    return [
        {"record_id": record.id, "image": record.image, "question": record.question,
         "source": record.source, "status": root.status, "sampled": sampled[i],
         "root": root.to_json()}
        for i, (record, root) in enumerate(zip(made, roots, strict=True))
    ]  # fmt: skip


def search(
    made: Sequence[Record],
    sampler: Sampler,
    out: str | Path,
    s: Search,
    seed: int = 0,
    policy: str = "",
    verifier: Verifier | None = None,
    questions: int = 32,  # ours: trees that grow together, and again when a search is cut off
) -> list[Tree]:
    """Search a tree for each record; one file a question in `out/trees`, each there whole or not.

    Killed and started again it ends with the trees of a search that never stopped: questions grow
    in fixed parts, each with a seed of its own.

    Args:
        policy: who answers, as `evaluate.generate.fingerprint` names it; part of the settings.
        verifier: default: `is_right`.
    """
    settings = {**asdict(s), "seed": seed, "questions": questions, "policy": policy}
    folder = folders.claim(out, settings, "search.json") / "trees"
    trees = []
    for start in range(0, len(made), questions):
        part = made[start : start + questions]
        # an id may be any text, and the same id with another question is another tree
        told = [json.dumps([record.id, record.image, record.question]) for record in part]
        files = [folder / f"{sha256(text.encode()).hexdigest()[:24]}.json" for text in told]
        if not all(file.is_file() for file in files):
            begin = int(sha256(f"{seed} {part[0].id}".encode()).hexdigest()[:8], 16)
            found = grow(part, sampler, verifier or is_right, s, begin)
            for file, tree in zip(files, found, strict=True):
                folders.write_text(file, folders.as_json(tree) + "\n")
        trees += map(folders.read_json, files)
    return trees


def is_right(made: list[Record], completions: list[str]) -> list[bool]:
    """Judge answers by each record's own verifier, as evaluation counts them."""
    from vlaa_lib import evaluate

    return [row["correct"] for row in evaluate.score_rows(made, completions)]


def run(
    policy: Policy, made: list[Record], images: str | Path, out: str | Path, s: Search, seed: int
) -> list[Tree]:
    """Search with a policy; also write `processes.json` and `statistics.csv` into `out`."""
    import torch

    from vlaa_lib.evaluate.generate import answer, ask, fingerprint

    def sample(made: list[Record], prefixes: list[str], seed: int) -> list[str]:
        torch.manual_seed(seed)
        asks = [replace(ask(r), reply=prefix) for r, prefix in zip(made, prefixes, strict=True)]
        return answer(policy, asks, images, s.batch, s.max_new_tokens, s.temperature)

    trees = search(made, sample, out, s, seed, fingerprint(policy)["weights"])
    # one JSON array, as the released file is; `read_processes` reads both
    text = folders.as_json(rows(trees), indent=0) + "\n"
    folders.write_text(Path(out) / "processes.json", text)
    folders.write_csv(Path(out) / "statistics.csv", statistics(trees))
    return trees


# --- what a search found --------------------------------------------------------------------------


def walk(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (path, node) of each step of a stored tree, parents first; a path is like `0.2.1`."""
    for i, child in enumerate(node["children"]):
        place = f"{path}.{i}" if path else str(i)
        yield place, child
        yield from walk(child, place)


def rows(trees: Iterable[Tree]) -> list[dict[str, Any]]:
    """Return one row for each step of each tree, in ViLReward-73K's columns."""
    return [
        {"index": f"{tree['record_id']}/{place}",  # ours
         "image_path": tree["image"], "question": tree["question"],
         "process": node["text"], "value": node["right"] / node["rollouts"]}
        for tree in trees
        for place, node in walk(tree["root"])
    ]  # fmt: skip


def statistics(trees: Iterable[Tree]) -> list[dict[str, Any]]:
    """Count questions and rows by source and over all, as the page's data table and beyond."""
    trees, table = list(trees), []
    for source in (*dict.fromkeys(tree["source"] for tree in trees), "sum"):
        mine = [tree for tree in trees if source in ("sum", tree["source"])]
        status = Counter(tree["status"] for tree in mine)
        values = [row["value"] for row in rows(mine)]
        nodes = [node for tree in mine
                 for node in (tree["root"], *(child for _, child in walk(tree["root"])))]
        table.append({
            "source": source,
            "questions": status["searched"],
            "items": len(values),
            "items_per_question": round(len(values) / max(1, status["searched"]), 2),
            "mean_value": round(sum(values) / len(values), 3) if values else None,
            "solved": status["solved"],
            "hopeless": status["hopeless"],
            "one_child": sum(len(node["children"]) == 1 for node in nodes),
            "rollouts": sum(tree["sampled"] for tree in mine),
        })  # fmt: skip
    return table


# --- scored processes: what a search wrote, or the released ViLReward-73K -------------------------

COLUMNS = ("index", "image_path", "question", "process", "value")
TYPES = {"index": ((str, int), "text or a number"), "value": ((int, float), "a number"),
         **dict.fromkeys(COLUMNS[1:4], (str, "text"))}  # fmt: skip


class Process(NamedTuple):
    """One scored process: the steps of a solution up to a step (ours: or all), and its value."""

    index: str
    image: str  # path below the image root
    question: str
    process: str
    value: float  # in [0, 1]


class Read(NamedTuple):
    """Rows that passed, and the rejects table."""

    rows: list[Process]
    rejects: list[Reject]


def read_processes(
    path: str | Path, images: str | Path | None = None, max_pixels: int = MAX_PIXELS
) -> Read:
    """Read a JSON array or JSON Lines; a row that cannot be used is a reject, with its line.

    Args:
        images: image root; when given, each image must be one that a model of `max_pixels` can be
            shown.
    """
    found, look = Read([], []), cache(problem_of)  # many rows share an image
    for line, row in iter_file(path):
        try:
            check(row, COLUMNS, TYPES)
            index, image, question, process, value = (row[name] for name in COLUMNS)
            if blank := [name for name in COLUMNS[1:4] if not row[name].strip()]:
                raise RecordError(f"key {blank[0]!r} is missing or empty")
            if isinstance(value, bool) or not 0 <= value <= 1:
                raise RecordError(f"value {value} is not a number between 0 and 1")
            image = image_below(image, images)
            if images and (why := look(image, images, max_pixels)):
                raise RecordError(why)
            found.rows.append(Process(str(index), image, question, process, float(value)))
        except RecordError as error:
            index = row.get("index", "") if isinstance(row, dict) else ""
            found.rejects.append(Reject(Path(path).name, line, str(index), str(error)))
    if not found.rows and not found.rejects:
        raise RecordError(f"{path}: the file holds no rows; was the download complete?")
    return found
