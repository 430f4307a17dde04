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
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlaa_lib import folders
from vlaa_lib.records import Record, RecordError

from . import steps

if TYPE_CHECKING:
    from vlaa_lib.models import Policy
    from vlaa_lib.profiles import Search

# records, the text that each answer begins with, a seed -> how each goes on to its end
Sampler = Callable[[list[Record], list[str], int], list[str]]
# records and whole completions -> whether each answer is right
Verifier = Callable[[list[Record], list[str]], list[bool]]
QUESTIONS = 32  # ours: trees that grow together, and are done again when a search is cut off
Tree = dict[str, Any]  # as it is stored: record_id, image, question, status, rollouts, root


@dataclass(eq=False)
class Node:
    """A partial answer that ends at the end of a step; the root is empty.

    Attributes:
        text: the answer from its beginning up to this step's end.
        rollouts: how the policy went on from here, and whether the answer was right.
        visits: values backed up through this node; `total` is their sum.
    """

    text: str = ""
    parent: Node | None = None
    children: list[Node] = field(default_factory=list)
    rollouts: list[tuple[str, bool]] = field(default_factory=list)
    visits: int = 0
    total: float = 0.0
    is_closed: bool = False

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
    def depth(self) -> int:
        """Number of steps."""
        return self.parent.depth + 1 if self.parent else 0


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

    Each rollout is a sample of the policy, so its next step is one as well and costs nothing; a
    child takes over the rollouts that went through it. Equal steps are one child; of more than
    `width` the most frequent stay.
    """
    found: dict[str, Node] = {}
    for text, right in node.rollouts:
        whole = node.text + text
        if (end := _next_end(len(node.text), whole)) is not None:
            child = found.setdefault(whole[:end], Node(whole[:end], node))
            child.rollouts.append((whole[end:], right))
    node.children = sorted(found.values(), key=lambda child: -len(child.rollouts))[:width]
    if not node.children:
        node.is_closed = True
        _close_above(node)
    return node.children


def _close_above(node: Node) -> None:
    """Close each node above whose children are all closed."""
    while (node := node.parent) and all(child.is_closed for child in node.children):
        node.is_closed = True


def _next_end(start: int, text: str) -> int | None:
    """Return where the first step that begins behind `start` ends; None where no word follows."""
    return next((end for _, end in steps.spans(text) if steps.spans(text[start:end])), None)


def simulate(
    asked: Sequence[tuple[Record, Node]], sampler: Sampler, verifier: Verifier, k: int, seed: int
) -> int:
    """Phase 3: let the policy go on from each node until it has k rollouts, all in one call.

    A node at which every rollout that it took over has stopped is an end and asks for none.

    Returns:
        How many rollouts were sampled.
    """
    todo = [
        (record, node)
        for record, node in asked
        if not node.is_end
        for _ in range(k - len(node.rollouts))
    ]
    if not todo:
        return 0
    made = [record for record, _ in todo]
    texts = sampler(made, [node.text for _, node in todo], seed)
    right = verifier(made, [node.text + text for (_, node), text in zip(todo, texts, strict=True)])
    for (_, node), text, is_right in zip(todo, texts, right, strict=True):
        node.rollouts.append((text, bool(is_right)))
    return len(todo)


def backpropagate(node: Node, max_depth: int) -> None:
    """Phase 4: add a node's value to every node up to the root; close what has nothing left."""
    above: Node | None = node
    while above:
        above.visits += 1
        above.total += node.value
        above = above.parent
    if node.is_end or node.depth >= max_depth:
        node.is_closed = True
        _close_above(node)


def grow(
    made: Sequence[Record], sampler: Sampler, verifier: Verifier, s: Search, seed: int
) -> list[Tree]:
    """Search the trees of some questions together, so that every call of the sampler is large.

    A question whose first rollouts are all right or all wrong says nothing about steps: its tree
    stays a root, with the status `solved` or `hopeless`.
    """
    roots, used = [Node() for _ in made], Counter()
    for turn in range(s.iterations + 1):
        fresh: list[tuple[int, Node]] = []
        for i, root in enumerate(roots):
            if not turn:
                fresh.append((i, root))
            elif _status(root) == "searched" and (leaf := select(root, s.exploration)):
                fresh += [(i, child) for child in expand(leaf, s.width)]
        before = [len(node.rollouts) for _, node in fresh]
        asked = [(made[i], node) for i, node in fresh]
        simulate(asked, sampler, verifier, s.rollouts, seed + turn)
        for (i, node), had in zip(fresh, before, strict=True):
            used[i] += len(node.rollouts) - had
            backpropagate(node, s.max_depth)
    return [_stored(record, roots[i], used[i]) for i, record in enumerate(made)]


def _status(root: Node) -> str:
    return {0.0: "hopeless", 1.0: "solved"}.get(root.value, "searched")


def _stored(record: Record, root: Node, sampled: int) -> Tree:
    return {
        "record_id": record.id,
        "image": record.image,
        "question": record.question,
        "source": record.source,
        "status": _status(root),
        "sampled": sampled,
        "root": _node(root),
    }


def _node(node: Node) -> dict[str, Any]:
    """Return what is kept of a node; the rollouts' texts are not, they are most of a search."""
    return {
        "step": node.text[len(node.parent.text) if node.parent else 0 :].strip(),
        "text": node.text,
        "right": sum(right for _, right in node.rollouts),
        "rollouts": len(node.rollouts),
        "visits": node.visits,
        "is_end": node.is_end,
        "children": [_node(child) for child in node.children],
    }


def search(
    made: Sequence[Record],
    sampler: Sampler,
    out: str | Path,
    s: Search,
    seed: int = 0,
    policy: str = "",
    verifier: Verifier | None = None,
    questions: int = QUESTIONS,
) -> list[Tree]:
    """Search a tree for each record; one file a question in `out/trees`, each there whole or not.

    Killed at any moment and started again it ends with the trees of a search that never stopped:
    questions grow in fixed parts, each with a seed of its own.

    Args:
        policy: who answers, as `perplexity.fingerprint` names it; part of the settings.
        verifier: default: each record's own, answers without tags included.
    Raises:
        RecordError: `out` holds trees of other settings.
    """
    settings = {**asdict(s), "seed": seed, "questions": questions, "policy": policy}
    path = Path(out) / "search.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else settings
    if other := sorted(k for k in settings if kept.get(k) != settings[k]):
        said = ", ".join(f"{k} {kept.get(k)} instead of {settings[k]}" for k in other)
        raise RecordError(f"{path}: trees with {said}; name another folder, or delete this one")
    folders.write_text(path, json.dumps(settings, indent=1) + "\n")
    trees = []
    for start in range(0, len(made), questions):
        part = made[start : start + questions]
        files = [_file(out, record) for record in part]
        if not all(file.is_file() for file in files):
            begin = int(sha256(f"{seed} {part[0].id}".encode()).hexdigest()[:8], 16)
            for file, tree in zip(
                files, grow(part, sampler, verifier or is_right, s, begin), strict=True
            ):
                folders.write_text(file, json.dumps(tree, ensure_ascii=False) + "\n")
        trees += [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return trees


def _file(out: str | Path, record: Record) -> Path:
    # an id may be any text, and the same id with another question is another tree
    name = sha256(json.dumps([record.id, record.image, record.question]).encode()).hexdigest()
    return Path(out) / "trees" / f"{name[:24]}.json"


def is_right(made: list[Record], completions: list[str]) -> list[bool]:
    """Judge answers by each record's own verifier, as evaluation counts them."""
    from vlaa_lib import evaluate

    return [row["correct"] for row in evaluate.score_rows(made, completions)]


def policy_sampler(policy: Policy, images: str | Path, s: Search) -> Sampler:
    """Return the sampler of a policy: batches of prompts that each begin an answer."""
    import torch

    from vlaa_lib.evaluate.generate import answer, ask

    def sample(made: list[Record], prefixes: list[str], seed: int) -> list[str]:
        torch.manual_seed(seed)
        asks = [replace(ask(r), reply=prefix) for r, prefix in zip(made, prefixes, strict=True)]
        return answer(policy, asks, images, s.batch, s.max_new_tokens, s.temperature)

    return sample


def run(
    policy: Policy,
    made: Sequence[Record],
    images: str | Path,
    out: str | Path,
    s: Search,
    seed: int,
) -> list[Tree]:
    """Search with a policy; also write `processes.json` and `statistics.csv` into `out`."""
    from vlaa_lib import perplexity

    who = perplexity.fingerprint(policy)["weights"]
    trees = search(made, policy_sampler(policy, images, s), out, s, seed, who)
    write_rows(Path(out) / "processes.json", rows(trees))
    folders.write_csv(Path(out) / "statistics.csv", statistics(trees))
    return trees


def walk(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (path, node) of each step of a stored tree, parents first; a path is like `0.2.1`."""
    for i, child in enumerate(node["children"]):
        place = f"{path}.{i}" if path else str(i)
        yield place, child
        yield from walk(child, place)


def rows(trees: Iterable[Tree]) -> list[dict[str, Any]]:
    """Return one row for each step of each tree, in ViLReward-73K's columns.

    `process` is the answer up to the step, `value` the share of its rollouts that were right;
    `index` is ours: the record's id and the step's place in the tree.
    """
    return [
        {
            "index": f"{tree['record_id']}/{place}",
            "image_path": tree["image"],
            "question": tree["question"],
            "process": node["text"],
            "value": node["right"] / node["rollouts"],
        }
        for tree in trees
        for place, node in walk(tree["root"])
    ]


def write_rows(path: str | Path, found: list[dict[str, Any]]) -> None:
    """Write rows as one JSON array, as the released file is; `released.read_processes` reads it."""
    folders.write_text(path, json.dumps(found, ensure_ascii=False, indent=0) + "\n")


def statistics(trees: Iterable[Tree]) -> list[dict[str, Any]]:
    """Count questions and rows by source and over all, in the shape of the page's data table.

    Beside the table's columns: how many questions gave no rows, and why; steps that are an only
    child; rollouts that were sampled; the mean value.
    """
    trees = list(trees)
    names = list(dict.fromkeys(tree["source"] for tree in trees))
    return [
        {"source": name, **_counted([t for t in trees if name in ("sum", t["source"])])}
        for name in (*names, "sum")
    ]


def _counted(trees: list[Tree]) -> dict[str, Any]:
    status = Counter(tree["status"] for tree in trees)
    values = [row["value"] for row in rows(trees)]
    inner = [n for t in trees for _, n in [("", t["root"]), *walk(t["root"])] if n["children"]]
    return {
        "questions": status["searched"],
        "items": len(values),
        "items_per_question": round(len(values) / max(1, status["searched"]), 2),
        "mean_value": round(sum(values) / len(values), 3) if values else None,
        "solved": status["solved"],
        "hopeless": status["hopeless"],
        "one_child": sum(len(node["children"]) == 1 for node in inner),
        "rollouts": sum(tree["sampled"] for tree in trees),
    }
