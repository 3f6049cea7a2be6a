"""MATH's answers (Hendrycks et al. 2021, https://github.com/hendrycks/math): the last \\boxed{...}, compared as written text.

Before that, the authors take out what does not change an answer: spaces, sizes of brackets, units, degree, dollar and percent
signs, a short name and its equals sign; and they write fractions and roots with braces. Here numbers that are equal are equal too,
so that `0.25`, `\\frac{1}{4}` and `1/4` are the same answer.
"""

from __future__ import annotations

import re
from decimal import Decimal

from relgrad.environments.benchmarks.numbers import equal, with_fractions

BOXED = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)|\\boxed\s+(?=[^{])")
REMOVED = ("\n", "\\!", "\\left", "\\right", "^{\\circ}", "^\\circ", "\\$", "\\%", "%")
TOLERANCE = Decimal("1e-9")


def boxed(text: str) -> str | None:
    """What the last \\boxed{...} (or \\fbox, or `\\boxed 5`) holds; None where there is none, or it is not closed."""
    *_, last = [None, *BOXED.finditer(text)]
    if last is None:
        return None
    rest = text[last.end() :]
    if not rest.startswith("{"):
        return rest.split("$")[0].strip()
    depth = 0
    for place, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:place]
    return None


def same(answer: str, expected: str) -> bool:
    """Whether two answers are written the same after the authors' clean-up, or are the same number."""
    a, b = cleaned(answer), cleaned(expected)
    if a == b:
        return True
    one, other = _number(a), _number(b)
    return one is not None and other is not None and equal(one, other, TOLERANCE)


def cleaned(text: str) -> str:
    """An answer as it is compared, by the rules of the authors' `_strip_string`, in their order."""
    text = text.replace("\\\\", "\\")
    for word in REMOVED[:2]:
        text = text.replace(word, "")
    text = text.replace("tfrac", "frac").replace("dfrac", "frac")
    for word in REMOVED[2:]:
        text = text.replace(word, "")
    text = text.partition("\\text{ ")[0]  # what follows are units
    text = text.replace(" .", " 0.").replace("{.", "{0.")
    if text.startswith("."):
        text = f"0{text}"
    name, equals, value = text.partition("=")
    if equals and "=" not in value and len(name) <= 2:
        text = value
    text = re.sub(r"\\sqrt(?!\{)(.)", r"\\sqrt{\1}", text).replace(" ", "")
    text = re.sub(r"\\frac(?!\{)(.)(\{|.|$)", _braced, text)
    if text == "0.5":
        return "\\frac{1}{2}"
    return re.sub(r"^(-?\d+)/(-?\d+)$", r"\\frac{\1}{\2}", text)


def _braced(match: re.Match[str]) -> str:
    above, below = match.groups()
    if not below:
        return match.group()
    return f"\\frac{{{above}}}{{" if below == "{" else f"\\frac{{{above}}}{{{below}}}"


def _number(text: str) -> Decimal | None:
    """The one number that a text is; None where it is more than that."""
    values = with_fractions(text)
    bare = re.fullmatch(r"-?\\frac\{-?\d+\}\{\d+\}|[-+−]?[\d,.]+(?:[eE][-+]?\d+)?|-?\d+/\d+", text)
    return values[0] if bare and len(values) == 1 else None
