"""Ten rows in the schema of each real benchmark, with small random pictures; nothing is theirs."""

import base64
import csv
import io
import random

from PIL import Image

_WEMATH_KEYS = [*(f"{n}steps_{k}" for n in "23" for k in (*range(1, int(n) + 1), "multi"))]


def picture(seed: int, size: tuple[int, int] = (40, 30)) -> str:
    """Return a PNG of noise as base64."""
    noise = random.Random(seed).randbytes(size[0] * size[1] * 3)
    stream = io.BytesIO()
    Image.frombytes("RGB", size, noise).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def _own(name: str, i: int) -> dict:
    letter = "ABCD"[i % 4]
    if name == "MathVista_MINI":
        is_choice = i % 2 == 0
        return {
            "question_type": "multi_choice" if is_choice else "free_form",
            "answer_type": "text" if is_choice else "integer",
            "choices": repr(["one", "two's", "three", "four"]) if is_choice else "[]",
            "answer": "one" if is_choice else str(i),
            "answer_option": "A" if is_choice else "",
            "task": "figure question answering",
            "skills": repr(["arithmetic reasoning"]),
        }
    if name == "MathVision":
        return {"choices": "[]" if i % 2 else repr(list("wxyz")),
                "answer": str(i) if i % 2 else letter, "category": "algebra"}  # fmt: skip
    if name.startswith("MathVerse"):
        return {"query_cot": f"Think first, then solve {i}.", "question_for_eval": f"Solve {i}",
                "answer": letter, "question_type": "multi-choice", "problem_version": "Vision Only",
                "metadata": "{'subject': 'Plane Geometry', 'subfield': 'Angle'}"}  # fmt: skip
    if name == "DynaMath":
        kind = ("float", "multiple choice", "text")[i % 3]
        return {"qid": "1", "varid": str(i + 1), "answer": {"float": "1.5"}.get(kind, letter),
                "answer_type": kind, "subject": "sets", "knowledge_level": "middle"}  # fmt: skip
    if name.startswith("WeMath"):
        key = _WEMATH_KEYS[i % 7]
        return {"ID": f"{key[0]}steps_{i // 7}", "key": key, "knowledge concept": "Angles",
                "A": "1", "B": "None", "C": "", "D": "No correct answer", "answer": "A",
                "hint": "Look." if i % 2 else "", "requirement": "Step by step."}  # fmt: skip
    return {"answer": ("A", "A, C")[i % 2], "skill": repr(["inductive"])}


def rows(name: str, num: int = 10) -> list[dict]:
    """Return rows; one picture is shared by reference, as VLMEvalKit's files do."""
    made = [
        {"index": str(i), "image": picture(i), "question": f"Question {i}:\n\t\"what?\" " + "x" * i}
        | _own(name, i)
        for i in range(num)
    ]
    made[2]["image"] = "0"
    return made


def write(path, made: list[dict]) -> None:
    """Write rows as VLMEvalKit does: every cell quoted."""
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(
            stream, list(made[0]), delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(made)
