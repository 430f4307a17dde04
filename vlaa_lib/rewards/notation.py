r"""How people write mathematics: as text alone, before any of it is parsed.

An answer is stripped of what is around it, written in the LaTeX that Math-Verify's parser reads
(`clean`), and held against its gold (`pairs`): names, units, brackets and rows are compared here,
and what is left are pairs of expressions.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from itertools import accumulate, pairwise

from . import quantities
from .quantities import split_unit
from .verifiers import bare, symbols

_INSIDE = r"\(((?:[^()]|\([^()]*\))*)\)"  # a call's argument, with parentheses one deep
_FUNCTIONS = (
    "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|sec|csc|cot|log|ln|exp|pi|theta|alpha|beta"
)
_TEXT_MACRO = re.compile(r"\\(?:text(?:bf|it|rm)?|mathrm|mathbf|operatorname|mbox)\{([^{}]*)\}")
_CURRENCY = re.compile(r"([+-]?)(?:US)?\\?([$€£])\s{0,2}(\d[\d,]{0,30}(?:\.\d{1,30})?)")
# parsers read past these to one side or the other: `4, \boxed{3}` and `3 \approx 4` pass for 3
_NOT_ONE = re.compile(
    r"\$|\\boxed|\\fbox|\\approx|\\simeq|\\sim\b|~|\\phantom|\d\s+\d|&|\"|'\w{0,40}'\s?:"
)


def latex(expression: str) -> str:
    r"""Write plain notation, as Math PUMA has it, so that functions are read as functions.

    Math-Verify takes `sin` for a product of three letters: by its signs `5*sin(5*x)` equals
    `-5*sin(-5*x)`.

    >>> latex("y = -5 * sin(pi * x) + abs(2*(x - 1))")
    'y = -5 * \\sin(\\pi * x) + |2*(x - 1)|'
    >>> latex("sqrt(2) + log(x, 2) + sinx"), latex(r"\sqrt{2} \sin x")
    ('\\sqrt{2} + \\log_{2}(x) + \\sin x', '\\sqrt{2} \\sin x')
    """
    text = re.sub(rf"(?<![\\a-z])(?:math\.|np\.)?abs{_INSIDE}", r"|\1|", expression)
    text = re.sub(rf"(?<![\\a-z])(?:math\.|np\.)?sqrt{_INSIDE}", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<![\\a-z])log\(([^(),]*),\s*([^(),]*)\)", r"\\log_{\2}(\1)", text)
    text = re.sub(rf"(?<![\\a-z])({_FUNCTIONS})x\b", r"\1 x", text)
    return re.sub(rf"(?<![\\a-z])({_FUNCTIONS})(?![a-z])", r"\\\1", text)


def clean(text: str) -> str:
    r"""Strip an answer's wrappers and write what is inside in the LaTeX that parsers read.

    >>> clean(r"The answer is $2\text{ cm}$."), clean("2 * sin(x)**-1"), clean("3 1/2")
    ('2 cm', '2 * \\sin(x)^{-1}', '3\\frac{1}{2}')
    >>> clean("$12.50"), clean("[[1, 2], [3, 4]]")
    ('12.50 usd', '\\begin{bmatrix} 1& 2\\\\3& 4 \\end{bmatrix}')
    """
    # $3$ square units
    text = re.sub(r"^\$([^$]*)\$(?=\s{0,3}[A-Za-z][A-Za-z ]{0,40}(?:\^?\{?[23²³]\}?)?$)", r"\1",
                  bare(text))  # fmt: skip
    if money := _CURRENCY.fullmatch(text):
        text = f"{money[1]}{money[3]} {quantities.CURRENCIES[money[2]]}"
    text = symbols(text).replace("**", "^")
    text = re.sub(r"(?<=\d)(?:\\,|\{,\})(?=\d{3}(?!\d))", "", text)  # LaTeX's thousands
    text = re.sub(r"(?<!\\)\\(?:[,;:! ]|q?quad\b)", " ", text)  # but `\\` ends a row
    # words in \text must count as words: Math-Verify drops them, `3 \text{ is wrong}` passes for 3
    text = latex(_TEXT_MACRO.sub(r" \1 ", text))
    text = re.sub(r"\^(-\d+(?:\.\d+)?|\d*\.\d+)", r"^{\1}", text)
    text = re.sub(r"(?<![\d.])(\d{1,9})\s{1,3}(\d{1,9})\s?/\s?(\d{1,9})", r"\1\\frac{\2}{\3}", text)
    return " ".join(matrices(text).split())


def is_one(text: str) -> bool:
    """Say whether a cleaned text may be one expression."""
    return bool(text) and not _NOT_ONE.search(_ROWS.sub(" ", text))


# --- matrices, points, intervals: entries in an order ---------------------------------------------

_ROWS = re.compile(r"\\begin\{([bv])matrix\}.{1,400}?\\end\{\1matrix\}", re.DOTALL)
_MATRIX = re.compile(r"\\begin\{bmatrix\}(.{1,400}?)\\end\{bmatrix\}", re.DOTALL)
_ROUND_MATRIX = re.compile(
    r"(?:(?:\\left\s?)?[\[(]\s?)?\\begin\{(?:array\}\{[^{}]{0,40}|(?:small)?matrix|[pb]matrix)\}"
    r"(.{1,400}?)\\end\{\w{1,12}\}(?:\s?(?:\\right\s?)?[\])])?", re.DOTALL,
)
_NESTED = re.compile(r"\[\s?(\[[^\[\]]{1,200}\](?:\s?,\s?\[[^\[\]]{1,200}\]){0,19})\s?\]")


def matrices(text: str) -> str:
    r"""Write every matrix that is no determinant in one way: arrays, nested lists, angle brackets.

    >>> matrices(r"\left(\begin{array}{cc}1&2\\3&4\end{array}\right)")
    '\\begin{bmatrix} 1&2\\\\3&4 \\end{bmatrix}'
    """
    text = re.sub(r"\\begin\{vmatrix\}|\\left\|\s?\\begin\{array\}\{[^{}]{0,40}\}",
                  r"\\begin{vmatrix}", text)  # fmt: skip
    text = re.sub(r"\\end\{array\}\s?\\right\|", r"\\end{vmatrix}", text)
    text = _ROUND_MATRIX.sub(r"\\begin{bmatrix} \1 \\end{bmatrix}", text)
    text = re.sub(r"\\langle(.{1,200}?)\\rangle", r"(\1)", text)
    if nested := _NESTED.fullmatch(text.strip()):
        rows = re.findall(r"\[([^\[\]]*)\]", nested[1])
        if len({row.count(",") for row in rows}) == 1:
            inside = r"\\".join(row.replace(",", "&") for row in rows)
            return rf"\begin{{bmatrix}} {inside} \end{{bmatrix}}"
    return text


def entries(text: str) -> tuple[tuple, list[str]] | None:
    r"""Return the shape and the entries of what lists them in an order; None for all else.

    >>> entries(r"\begin{bmatrix} 1&2\\3&4 \end{bmatrix}"), entries("(1, f(2, 3)]"), entries("1, 2")
    (((2, 2), ['1', '2', '3', '4']), (('(]', 2), ['1', 'f(2, 3)']), None)
    """
    if match := _MATRIX.fullmatch(text.strip()):
        rows = [row.split("&") for row in re.split(r"\\\\", match[1].strip().removesuffix(r"\\"))]
        cells = [cell.strip() for row in rows for cell in row]
        is_whole = {len(row) for row in rows} == {len(rows[0])}
        return ((len(rows), len(rows[0])), cells) if is_whole else None
    text = re.sub(r"\\(?:left|right)\s?(?=[\[\](){}|])", "", text).strip()
    if len(text) < 2 or text[0] not in "([" or text[-1] not in ")]":
        return None
    inside = text[1:-1]
    depths = list(accumulate((c in "([{") - (c in ")]}") for c in inside))
    if min(depths, default=0) < 0 or not depths or depths[-1]:
        return None
    commas = [i for i, c in enumerate(inside) if c == "," and not depths[i]]
    ends = [-1, *commas, len(inside)]
    found = [inside[a + 1 : b].strip() for a, b in pairwise(ends)]
    return ((text[0] + text[-1], len(found)), found) if commas else None


def _are_alike(a: tuple, b: tuple) -> bool:
    """Say whether two shapes are the same; a vector may be a point or a matrix of one row."""
    a, b = sorted((a, b), key=lambda shape: isinstance(shape[0], str))
    if isinstance(a[0], int) and isinstance(b[0], str):
        return b[0] in ("()", "[]") and 1 in a and max(a) == b[1]
    return a == b


def pairs(gold: str, answer: str) -> list[tuple[str, str]] | None:
    """Return the pairs of expressions that must be equal; None where the shapes differ."""
    wanted, found = entries(gold), entries(answer)
    if wanted is None or found is None:
        return [(gold, answer)]
    if not _are_alike(wanted[0], found[0]):
        return None
    each = [pairs(*pair) for pair in zip(wanted[1], found[1], strict=True)]
    return None if None in each else [pair for one in each for pair in one]


# --- words and labels -----------------------------------------------------------------------------

_LABEL_MACRO = re.compile(
    r"\\(?:angle|triangle|overline|overrightarrow|overleftrightarrow|odot|vec|widehat)\b|[{}]"
)
_WORDS = re.compile(
    r"[A-Za-z]{1,40}(?:(?:[\s,]|\\to\b|\\rightarrow\b|->|→|-){1,3}[A-Za-z]{1,40}){0,30}"
)
_YES_NO = ("yes", "no")


def words(text: str) -> tuple[str, ...]:
    r"""Read a cleaned text as words, or as the letters of a label or a sequence; () for maths.

    One letter is a variable, and letters with a sign between them are an expression.

    >>> words("BDAC"), words(r"B \to D"), words("dark blue"), words("x"), words("2ab"), words("a-b")
    (('BDAC',), ('BD',), ('dark', 'blue'), (), (), ())
    """
    text = _LABEL_MACRO.sub(" ", text).strip()
    text = re.sub(r"^([A-Za-z])\s?(?:\\cdot|\\times|\*)\s?([A-Za-z])$", r"\1\2", text)  # xy
    if not _WORDS.fullmatch(text):
        return ()
    parts = re.findall(r"[A-Za-z]+", text.replace(r"\to", " ").replace(r"\rightarrow", " "))
    is_label = all(len(part) == 1 or part.isupper() for part in parts)
    if "-" in text.replace("->", ""):
        is_sum = len(parts) < 3 or not text.isupper() if is_label else min(map(len, parts)) < 3
        if is_sum:
            return ()
    if is_label:
        return () if len(parts) == len(parts[0]) == 1 else ("".join(parts),)
    return tuple(parts)


def are_same_words(gold: Collection[str], said: Collection[str]) -> bool:
    """Compare words, whatever their case; labels and pairs of letters in their own case."""
    wanted, found = " ".join(gold), " ".join(said)
    is_word = wanted.lower() in _YES_NO or (len(wanted) > 2 and not wanted.isupper())
    return wanted.casefold() == found.casefold() if is_word else wanted == found


def is_prose(text: str) -> bool:
    r"""Say whether a cleaned text holds a sentence: three words of small letters.

    >>> is_prose("the line goes up"), is_prose(r"2 \sin x"), is_prose("x = 1 or x = 2")
    (True, False, False)
    """
    found = re.findall(r"(?<![\\A-Za-z{])[A-Za-z]?[a-z]{2,40}(?![A-Za-z}(])", text)
    return len([word for word in found if word not in ("and", "or", "usd")]) >= 3


# --- what an answer may leave out, or add ---------------------------------------------------------

_GREEK = (
    "alpha|beta|gamma|delta|epsilon|varepsilon|theta|lambda|mu|rho|sigma|tau|phi|varphi|omega|Delta"
)
# a name on the left: y, f(x), f(3), x_1, \angle BAC, \overline{AB}, |AB|, S_{\triangle ABC}
_SIDE = re.compile(
    r"((?:\\(?:angle|triangle|overline|overrightarrow|vec|odot|sin|cos|tan"
    rf"|{_GREEK})\b|[A-Za-z{{}}|'\s]"
    r"|_(?:\{[^{}=]{1,20}\}|\d{1,3}|[A-Za-z])|\([A-Za-z\d,\s]{1,12}\)){1,60}?)"
    r"\s{0,4}=(.+)", re.DOTALL,
)
_NO_NAME = re.compile(r"\b(?:not|or|and|if|no|never|when|than)\b")
_Y_OF_X = ({"y", "f(x)"}, {"y", "g(x)"})
_RELATION = re.compile(r"[<>]|\\(?:l|g)eq?\b|\\in\b")
_TUPLE = re.compile(r"(?:\\left\s?)?[\[(].*,.*[\])]", re.DOTALL)
# 1.2e-4 and 1e-4 are numbers; so is 2e-4, unless the other side has the number e: then 2e - 4
_CLEAR_POWER = re.compile(r"(?<![\w.\\])(\d{1,30}\.\d{1,30}|1)[eE]([+-]?\d{1,3})(?![\w.])")
_POWER = r"\1 \\times 10^{\2}"
_EULER = re.compile(r"(?<![A-Za-z\\])e(?![A-Za-z])")
_LIST = re.compile(r"[^\[\](){}=<>]{1,60}(?:,[^\[\](){}=<>,]{1,60}){2,40}")


def _split_side(text: str) -> tuple[str, str]:
    """Split `y = 2x` into ("y", "2x") and `x = 1, x = 2` into ("x", "1, 2"); else ("", text)."""
    match = _SIDE.fullmatch(text)
    if match is None or not re.search("[A-Za-z]", match[1]) or _NO_NAME.search(match[1]):
        return "", text
    again = rf"(,|;|\bor\b|\band\b)\s{{0,4}}{re.escape(match[1].strip())}\s{{0,4}}=\s{{0,4}}"
    body = re.sub(again, r"\1 ", match[2])
    name = re.sub(r"\\(?:angle|triangle|overline|overrightarrow|vec|odot)\b|[\s{}|]", "", match[1])
    return ("", text) if "=" in body else (re.sub("^m(?=[A-Z])", "", name), body.strip())


def _in_order(text: str) -> str:
    """Write a bare list of three entries or more as a sequence, in brackets."""
    listed = re.sub(r",?\s(?:and|or)\s", ", ", text)
    is_number = re.fullmatch(r"-?\d{1,3}(?:,\d{3}){1,9}(?:\.\d{1,30})?", listed)
    return f"({listed})" if _LIST.fullmatch(listed) and not is_number else text


def unit_of(text: str) -> str:
    """Return the unit behind the number that a text is; "" for none."""
    return split_unit(clean(text))[1]


def comparable(gold: str, answer: str, nouns: Collection[str] = ()) -> tuple[str, str] | str:
    """Drop `y =` and units where that is fair: the pair to compare, or what forbids comparing it.

    >>> comparable("y = 2x", "2x"), comparable("x = 3", "y = 3"), comparable("3 cm", "3 m")
    (('2x', '2x'), ('x = 3', 'y = 3'), 'unit m instead of cm')
    >>> comparable("3", "7 = 3")
    'the answer and the gold are not both equations'
    """
    sides = [_CLEAR_POWER.sub(_POWER, side) for side in (gold, answer)]
    powers = [quantities.SCIENTIFIC.sub(_POWER, side) for side in sides]
    gold, answer = sides if any(map(_EULER.search, powers)) else powers
    (gold_name, gold_body), (name, body) = _split_side(gold), _split_side(answer)
    names = {gold_name, name}
    is_fair = gold_name == name or "" in names or names in _Y_OF_X
    if not is_fair and all(len(re.findall("[A-Z]", one)) > 1 for one in names):
        return f"{name} instead of {gold_name}"  # points in another order are another angle
    if not is_fair or "=" in gold_body + body:
        gold_body, body = gold, answer
    # Math-Verify reads the gold off either side of an equation: `7 = 3` would pass for 3
    if ("=" in gold_body) != ("=" in body):
        return "the answer and the gold are not both equations"
    if not gold_name and not name and _in_order(gold_body) != gold_body:
        gold_body, body = _in_order(gold_body), _in_order(body)
    # it also takes `(1, 2)` for the set of 1 and 2
    is_tuple = [bool(_TUPLE.fullmatch(side)) for side in (gold_body, body)]
    has_matrix = any(map(_MATRIX.search, (gold_body, body)))
    if is_tuple[0] != is_tuple[1] and not has_matrix and not _RELATION.search(gold_body + body):
        return "the answer and the gold are not both in brackets"
    (gold_body, gold_unit), (body, unit) = split_unit(gold_body, nouns), split_unit(body, nouns)
    if gold_unit and unit and gold_unit != unit:
        return f"unit {unit} instead of {gold_unit}"
    return gold_body, body
