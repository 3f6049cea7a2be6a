"""The program in a completion: in its fenced code, or the completion itself as the rest of a program that the prompt begins."""

from __future__ import annotations

import re
from dataclasses import dataclass

FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
OUTSIDE = re.compile(r"^(?=[^\s)\]}#])", re.MULTILINE)
"""The start of a line that is not indented, and neither closes a bracket nor is a comment."""


@dataclass(frozen=True)
class Program:
    """A program, and what is executed before it in the same module."""

    text: str
    before: str = ""


def program_of(completion: str, function: str | None, before: str = "") -> Program:
    """The program that a completion writes.

    function  the name of the function that is to be in it
    before    what the prompt began it with. A program that defines the function itself gets it as what is executed before; any
              other text goes on from it
    """
    text = program_in(completion, function)
    if not before:
        return Program(text)
    if defines(text, function):
        return Program(text, before)
    return Program(before + body_in(text))


def program_in(text: str, entry_point: str | None) -> str:
    """The first fenced block that defines the function; else the last one; without fences, the text.

    A fence that is never closed, as of a completion that was cut, ends with the text.
    """
    blocks = [match[2] for match in FENCE.finditer(text)]
    if not blocks:
        return text
    return next((block for block in blocks if defines(block, entry_point)), blocks[-1])


def defines(program: str, name: str | None) -> bool:
    """Whether a function or class of this name is defined in its first column."""
    return (
        name is not None
        and re.search(rf"^(?:async\s+)?(?:def|class)\s+{re.escape(name)}\b", program, re.MULTILINE) is not None
    )


def body_in(text: str) -> str:
    """The rest of a function that the prompt begins: up to a line that is not indented, where models go on to other things."""
    first, newline, rest = text.partition("\n")
    if not newline:
        return text
    outside = OUTSIDE.search(rest)
    return first + newline + (rest[: outside.start()] if outside else rest)
