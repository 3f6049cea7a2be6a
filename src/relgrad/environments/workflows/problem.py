"""Problems, their files, and when an answer is right."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from relgrad.core.errors import RelgradError
from relgrad.environments.benchmarks.numbers import in_decimals, numbers, without_numbers
from relgrad.environments.workflows.prompts import ANSWER

QUESTIONS = ("problem", "question", "prompt")
CURRENCY = re.compile(r"\\?[$€£]")
NAMED = re.compile(r"^\s*[A-Za-z]\s*=")
"""`x =` before a number."""
CALCULATION = re.compile(r"[^\W_]|[-+−*/^×·!√]")
"""What stands beside a number only in an expression, or in words."""
PART = re.compile(
    r"(?:(?:[\d)\]}]\s*|[A-Za-z])(?<!\d[eE])[-+−*/^×·]\s*[({]*[-+−]?"  # an operator
    r"|\d[^\S\n]+)"  # or a space between two numbers
    r"[\d.,]++\D*$"
)
"""An end of a text whose number is the last part of an expression: `2^10`, `3-2`, `x^{2}`, `1 1/2`."""
MARK = re.compile(rf"(?i)\**{ANSWER}\**")


class NoFile(RelgradError):
    """The file of problems is not there."""


@dataclass(frozen=True)
class Problem:
    """One question with its answer; "" where nobody knows it.

    type   what problems are alike
    wrong  wrong answers that a solver may give; only the scripted solver knows them
    tests  what a right answer passes, of those of execute.TESTS: (name, argument) each
    """

    id: str
    text: str
    answer: str
    type: str = ""
    wrong: tuple[str, ...] = ()
    tests: tuple[tuple[str, int], ...] = ()

    @property
    def told(self) -> Mapping[str, Any]:
        """What the scripted solver is told of it; empty for problems of the real world."""
        return {"type": self.type, "answer": self.answer, "wrong": list(self.wrong)} if self.wrong else {}


def answer_of(text: str) -> str:
    """The answer in a solution: behind the last `answer:`, in the last \\boxed{}, or the last line; "" where there is none."""
    marked = MARK.split(text)
    if len(marked) > 1:
        lines = marked[-1].strip().splitlines()
        return lines[0].strip().strip("*` ") if lines else ""
    if (start := text.rfind("\\boxed{")) >= 0:
        return _braced(text[start + len("\\boxed{") :])
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""


def _braced(text: str) -> str:
    """The text up to the brace that closes it."""
    depth = 1
    for place, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if not depth:
            return text[:place].strip()
    return ""


def number_in(text: str) -> Decimal | None:
    """The last number of a text (environments/benchmarks/numbers.py); None where it is part of an expression."""
    decimals = in_decimals(CURRENCY.sub("", text))
    values = numbers(decimals)
    return values[-1] if values and not PART.search(decimals) else None


def as_number(answer: str) -> Decimal | None:
    """The number that an answer is, but for a currency, a percent sign, brackets or `x =`; None for words and expressions."""
    decimals = NAMED.sub("", in_decimals(CURRENCY.sub("", answer)))
    values = numbers(decimals)
    return values[0] if len(values) == 1 and not CALCULATION.search(without_numbers(decimals)) else None


def normal(answer: str) -> str:
    """Answers that are equal for voting and for being right have this in common: one number, or the same words."""
    bare = answer.strip().rstrip(".").strip()
    if (number := as_number(bare)) is not None:
        digits = f"{number:f}"
        return (digits.rstrip("0").rstrip(".") if "." in digits else digits) if number else "0"
    return " ".join(bare.lower().split())


def is_right(problem: Problem, answer: str) -> bool:
    """Whether an answer is the problem's: the same number where that is one, else the same words."""
    number = as_number(problem.answer)
    return normal(answer) == normal(problem.answer) if number is None else number_in(answer) == number


def rightness(problem: Problem, answer: str) -> float:
    """1 for the right answer and 0 for others; NaN where nobody knows the problem's."""
    return float(is_right(problem, answer)) if problem.answer else math.nan


def read_problems(path: Path) -> list[Problem]:
    """Problems of a .jsonl file: `problem`, `question` or `prompt`, and `answer` (behind #### where it has that, as GSM8K).

    Raises NoFile, and RelgradError for a file that cannot be read or is empty, and for a line without a question or an answer.
    """
    if not path.is_file():
        raise NoFile(f"problems: no file {str(path)!r} (working directory {Path.cwd()})")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise RelgradError(f"problems: {path} is no UTF-8 text: {error}") from None
    problems = [_problem(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not problems:
        raise RelgradError(f"problems: {path} is empty; give one JSON object a line, with a question and an answer")
    if len({problem.id for problem in problems}) < len(problems):
        raise RelgradError(f"problems: {path} has two problems of one `id`; give each its own, or none any")
    return problems


def _problem(path: Path, number: int, line: str) -> Problem:
    where = f"problems: {path}, line {number}"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RelgradError(f"{where} is no JSON: {error}") from None
    if not isinstance(row, dict):
        raise RelgradError(f"{where}: an object belongs there (received {type(row).__name__})")
    text = _first(row, QUESTIONS)
    if text is None:
        raise RelgradError(
            f"{where} has no question: give {', '.join(QUESTIONS[:-1])} or {QUESTIONS[-1]}; it has {', '.join(row)}"
        )
    if not isinstance(row.get("answer"), (str, int, float)) or not str(row["answer"]).strip():
        raise RelgradError(f"{where} has no `answer`, so nothing could be scored; it has {', '.join(row)}")
    answer = str(row["answer"]).rpartition("####")[2].strip()
    return Problem(str(row.get("id", number)), text, answer, str(row.get("type", "")))


def _first(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((row[name] for name in names if isinstance(row.get(name), str) and row[name].strip()), None)
