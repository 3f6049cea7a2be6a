"""What came of a program: a value, or an error with a name. The text of an error is never a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

Level = Literal["full", "namespaces", "none"]
"""How a program was contained: bubblewrap and a filter of system calls; bubblewrap alone; limits alone, which is no boundary."""

ErrorKind = Literal[
    "syntax",
    "exception",
    "no data",
    "timeout",
    "memory",
    "crash",
    "flood",
    "refused call",
    "forged",
    "call failed",
    "not run",
]
"""syntax        the program does not parse
exception     it raised, or has no function to call
no data       its value is not plain data, or too large
timeout       it took longer than its limits of seconds allow
memory        it wanted more memory than its limit
crash         its process ended without a report: killed by a signal, or by itself
flood         it printed without end
refused call  it called what is not in the table, too often, or with too much
forged        it wrote to the parent what only its interpreter may write
call failed   a call that was allowed failed in the parent: nobody knows what the program would have answered
not run       the sandbox could not start it
"""

ERRORS: tuple[ErrorKind, ...] = get_args(ErrorKind)
REPORTED: tuple[ErrorKind, ...] = ("syntax", "exception", "no data", "memory")
"""Errors that are noticed inside, and reported by the guest."""


@dataclass(frozen=True)
class Call:
    """One call that the parent answered."""

    name: str
    arguments: dict[str, Any]
    value: Any
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """The end of one program.

    value    what it returned; None where there is an error
    error    None where it returned
    message  what there is to say of the error, for people
    printed  what it wrote to its standard output and error, cut to the limit
    calls    the calls that were answered, in order
    seconds  from the program's start to its end, calls included
    level    how it was contained
    """

    value: Any = None
    error: ErrorKind | None = None
    message: str = ""
    printed: str = ""
    calls: tuple[Call, ...] = ()
    seconds: float = 0.0
    level: Level = "none"

    @property
    def unscored(self) -> bool:
        """Whether the error says nothing of the program, only of the machinery around it."""
        return self.error in ("call failed", "not run")
