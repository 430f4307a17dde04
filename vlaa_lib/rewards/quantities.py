r"""Quantities as people write them: numbers in digits and words, and the units behind a number.

Units are compared, never converted. Patterns are bounded: model text may be built to make them
backtrack.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from decimal import Decimal
from fractions import Fraction

_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
NUMBER_WORDS = {word: n for n, word in enumerate(_ONES)} | {
    f"{ten}{'-' * bool(n)}{_ONES[n] * bool(n)}": 10 * (t + 2) + n
    for t, ten in enumerate(_TENS) for n in range(10)
}
_DIGITS = re.compile(  # 0,003 is no number of thousands, and nobody counts 3e0 things
    r"[+-]?(?:(?:[1-9]\d{0,2}(?:,\d{3}){1,6}|\d{1,30})(?:\.\d{1,30})?|\.\d{1,30})"
    r"(?:[eE][+-]?0?[1-9]\d?)?", re.ASCII,
)
SCIENTIFIC = re.compile(r"(?<![\w.\\])(\d{1,30}(?:\.\d{1,30})?)[eE]([+-]?\d{1,3})(?![\w.])")

# ours: one name for each way to write a unit; letters alone in their own case, 12 M is no length
UNITS = {
    "mm": r"mm|(?i:millimet(?:er|re)s?)", "cm": r"cm|(?i:centimet(?:er|re)s?)",
    "m": r"m|(?i:met(?:er|re)s?)", "km": r"km|(?i:kilomet(?:er|re)s?)",
    "in": r"in|(?i:inch(?:es)?)", "ft": r"ft|(?i:foot|feet)", "mi": r"(?i:miles?)",
    "yd": r"yd|(?i:yards?)", "mg": r"mg|(?i:milligrams?)", "g": r"g|(?i:grams?)",
    "kg": r"kg|(?i:kilograms?)", "lb": r"lbs?|(?i:pounds?)",
    "ml": r"m[lL]|(?i:millilit(?:er|re)s?)", "l": r"[lL]|(?i:lit(?:er|re)s?)",
    "s": r"s|sec|(?i:seconds?)", "min": r"min|(?i:minutes?)", "h": r"h|hrs?|(?i:hours?)",
    "day": r"(?i:days?)", "week": r"(?i:weeks?)",
    "month": r"(?i:months?)", "year": r"yrs?|(?i:years?(?: old)?)", "m/s": r"m\s?/\s?s",
    "km/h": r"km\s?/\s?h|(?i:kmh|kph)", "mph": r"(?i:mph)", "usd": r"(?i:usd|dollars?)",
    "eur": r"(?i:eur|euros?)", "gbp": r"(?i:gbp)", "cent": r"(?i:cents?)",
    "deg C": r"(?:\^\s?\{?\s?\\circ\s?\}?|\\degree|(?i:degrees?))\s?(?:C|(?i:celsius))",
    "deg": r"\^\s?\{?\s?\\circ\s?\}?|\\degree|\\deg|(?i:deg|degrees?)", "rad": r"(?i:rad|radians?)",
    "unit": r"(?i:units?)",
}  # fmt: skip
_UNIT = re.compile(
    r"(?P<body>[^A-Za-z]*(?:\\[A-Za-z]+[^A-Za-z]*){0,20}?)\s{0,3}"
    r"(?i:(?P<square>sq\.?|square)\s{1,3}|(?P<cubic>cu\.?|cubic)\s{1,3})?"
    r"(?P<unit>" + "|".join(UNITS.values()) + r")"
    r"(?:(?:\s?\^\s?\{?)?(?P<power>[23])\}?|\s(?i:(?P<squared>squared)|(?P<cubed>cubed)))?"
)
_COUNTED = re.compile(
    r"(?P<body>[^A-Za-z]{0,40}[^A-Za-z\s])(?P<nouns>(?:\s{1,3}[A-Za-z]{2,40}){1,8})"
)
CURRENCIES = {"$": "usd", "€": "eur", "£": "gbp"}

# ours: nouns and what goes with them that may follow a number though the question has them not
_NOUNS = frozenset((
    "cube", "block", "ball", "sphere", "cone", "cylinder", "object", "thing", "item", "shape",
    "unit", "degree", "cm", "mm", "km", "red", "green", "blue", "yellow", "purple", "gray", "grey",
    "brown", "cyan", "small", "large", "big", "tiny", "metal", "rubber", "shiny", "matte",
    "triangle", "square", "circle", "rectangle", "polygon", "side", "angle", "vertex", "vertice",
    "edge", "face", "point", "line", "row", "column", "solution", "root", "people", "person",
    "left", "remaining", "remain", "total", "altogether", "all", "in", "of", "them", "the",
    "image", "picture", "long", "wide", "high", "tall", "old",
))
_NO_NOUNS = NUMBER_WORDS.keys() | {
    "and", "nor", "not", "never", "than", "less", "fewer", "minus", "plus", "times", "half",
    "dozen", "hundred", "thousand", "million", "billion", "point", "between", "least", "most",
    "about", "around", "almost", "maybe", "perhaps", "nearly", "roughly", "wrong", "incorrect",
    "false", "percent",
}


def nouns_of(text: str) -> frozenset[str]:
    """Return the words that may follow a number in an answer to this question."""
    words = set(re.findall(r"[a-z]{3,40}", text.lower()))
    return _NOUNS | {form for word in words - _NO_NOUNS for form in _forms(word)}


def _forms(word: str) -> set[str]:
    return {word, word.removesuffix("s"), word.removesuffix("es")}


def are_nouns(words: Collection[str], nouns: Collection[str]) -> bool:
    """Say whether all words may follow a number, each in its singular or plural."""
    return all(_forms(word.lower()) & set(nouns) for word in words)


def decimal(text: str) -> Decimal | None:
    """Read one number in digits or as a word, nothing around it.

    >>> decimal("1,000"), decimal("1.2e-4"), decimal("Three"), decimal("0,003")
    (Decimal('1000'), Decimal('0.00012'), Decimal('3'), None)
    """
    if _DIGITS.fullmatch(text):
        return Decimal(text.replace(",", ""))
    word = text.lower()
    return Decimal(NUMBER_WORDS[word]) if word in NUMBER_WORDS else None


def split_unit(text: str, nouns: Collection[str] = ()) -> tuple[str, str]:
    r"""Split a number from the unit or the nouns behind it; letters in front of it are no number.

    >>> split_unit("12 square centimeters"), split_unit(r"45^\circ"), split_unit("2x m")
    (('12', 'cm^2'), ('45', 'deg'), ('2x m', ''))
    >>> split_unit("6 triangles", nouns_of("")), split_unit("6 maybe", nouns_of(""))
    (('6', ''), ('6 maybe', ''))
    """
    match = _UNIT.fullmatch(text)
    if match and re.search(r"\d|\\pi", match["body"]):
        name = next(n for n, pattern in UNITS.items() if re.fullmatch(pattern, match["unit"]))
        is_square, is_cubic = match["square"] or match["squared"], match["cubic"] or match["cubed"]
        power = "2" if is_square else "3" if is_cubic else match["power"]
        return match["body"].strip(), f"{name}^{power}" if power else name
    counted = _COUNTED.fullmatch(text)
    is_counted = counted and are_nouns(counted["nouns"].split(), nouns)
    return (counted["body"], "") if is_counted else (text, "")


_TERM = r"\d{1,15}(?:\.\d{1,15})?"
_SUM = re.compile(rf"{_TERM}(?:\s?(?:[-+*/]|\\times|\\cdot)\s?{_TERM}){{1,20}}")


def worked_out(text: str) -> Fraction | None:
    r"""Work out a sum as pupils write it, without brackets; None for all else.

    >>> worked_out("5 - 2"), worked_out(r"1 + 2 \times 3"), worked_out("5"), worked_out("1/0")
    (Fraction(3, 1), Fraction(7, 1), None, None)
    """
    if not _SUM.fullmatch(text):
        return None
    first, *rest = re.findall(rf"([-+*/]|\\times|\\cdot)?\s?({_TERM})", text)
    total, product = Fraction(0), Fraction(first[1])
    for sign, digits in rest:
        number = Fraction(digits)
        if sign in ("+", "-"):
            total, product = total + product, number if sign == "+" else -number
        elif sign == "/":
            if not number:
                return None
            product /= number
        else:
            product *= number
    return total + product
