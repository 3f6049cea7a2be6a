"""How a reward is called and how its answer is read: relgrad's own form, or the form TRL's trainers call.

Own form: `f(prompt, outputs) -> Sequence[Score]`, known by its parameters' names.

Every other function is called as TRL calls it, with keyword arguments and lists of one entry per completion:
`prompts`, `completions`, `completion_ids` and every column of the dataset. A chat prompt's completions are
`[{"role": "assistant", "content": text}]`, a text prompt's are strings. Only arguments that the function names are
passed, unless it takes `**kwargs`. `trainer_state` has one field, `global_step` (the weight updates that the sampling
policy had seen). `log_extra(column, values)` keeps numbers, as parts of each completion's score, and drops everything
else; `log_metric(name, value)` becomes a part of every completion of the group.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from types import SimpleNamespace
from typing import Any

from relgrad.core.errors import RelgradError
from relgrad.core.types import Output, Prompt, Score
from relgrad.rewards._columns import missing_column

_RESERVED = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Caller:
    """A reward with its calling form worked out once.

    Raises RelgradError for a callable without a readable signature, or with parameters that cannot be passed by name.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        self._function = function
        try:
            parameters = inspect.signature(function).parameters
        except (TypeError, ValueError):
            raise RelgradError(f"reward {name!r}: {function!r} is no Python function; wrap it in one") from None
        own = list(parameters)[:2] == ["prompt", "outputs"]
        self._names = None if own else [n for n, p in parameters.items() if p.kind in _NAMED]
        self._open = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self._required = [n for n, p in parameters.items() if p.default is p.empty and p.kind in _NAMED]
        if not own and (strange := [n for n, p in parameters.items() if p.kind is p.POSITIONAL_ONLY]):
            raise RelgradError(f"reward {name!r}: cannot pass {strange[0]!r} by name; remove the / from its parameters")
        call = getattr(function, "__call__", None)  # noqa: B004
        self.is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)

    def bind(
        self, prompt: Prompt, outputs: Sequence[Output], step: int
    ) -> tuple[Callable[[], Any], list[dict[str, float]]]:
        """A call without arguments for one group, and the parts that it will log, one mapping per output.

        Raises RelgradError when the function requires a column that the dataset does not have.
        """
        parts: list[dict[str, float]] = [{} for _ in outputs]
        function = self._function
        if self._names is None:
            return lambda: function(prompt, outputs), parts
        offered: dict[str, Any] = {key: [value] * len(outputs) for key, value in prompt.columns.items()}
        offered |= _group_arguments(prompt, outputs) | _log_arguments(parts)
        offered["trainer_state"] = SimpleNamespace(global_step=step)
        for needed in self._required:
            if needed not in offered:
                also = f"every function is also offered {', '.join(_RESERVED)}"
                raise RelgradError(f"reward {self.name!r}: {missing_column(needed, prompt)}; {also}")
        arguments = offered if self._open else {n: offered[n] for n in self._names if n in offered}
        return lambda: function(**arguments), parts


def _group_arguments(prompt: Prompt, outputs: Sequence[Output]) -> dict[str, list[Any]]:
    ids = [list(output.ids) for output in outputs]
    if isinstance(prompt.content, str):
        return {
            "prompts": [prompt.content] * len(outputs),
            "completions": [output.text for output in outputs],
            "completion_ids": ids,
        }
    return {
        "prompts": [[dict(message) for message in prompt.content] for _ in outputs],
        "completions": [[{"role": "assistant", "content": output.text}] for output in outputs],
        "completion_ids": ids,
    }


def _log_arguments(parts: list[dict[str, float]]) -> dict[str, Callable[[str, Any], None]]:
    def log_extra(column: str, values: Sequence[Any]) -> None:
        for part, value in zip(parts, values, strict=False):
            if isinstance(value, Real):
                part[column] = float(value)

    def log_metric(name: str, value: float) -> None:
        for part in parts:
            part[name] = float(value)

    return {"log_extra": log_extra, "log_metric": log_metric}


def read_scores(name: str, answer: Any, expected: int) -> list[Score]:
    """One Score per completion from what a reward returned; None, NaN and infinities are unscored, with the reason.

    Raises RelgradError when the answer is no list, has the wrong length, or holds something that is no number.
    """
    if inspect.iscoroutine(answer):
        answer.close()
        raise RelgradError(f"reward {name!r} returned a coroutine; declare the function itself with async def")
    flat = hasattr(answer, "__len__") and getattr(answer, "ndim", 1) == 1  # arrays and tensors count as lists
    if not flat or isinstance(answer, (str, bytes, Mapping, set, frozenset)):
        raise RelgradError(f"reward {name!r} returned {_kind(answer)}; expected a list of {expected} numbers")
    if len(answer) != expected:
        raise RelgradError(
            f"reward {name!r} returned {len(answer)} values for {expected} completions; return exactly one each "
            "(None where one cannot be scored)"
        )
    return [_score(name, value) for value in answer]


def _score(name: str, value: Any) -> Score:
    if isinstance(value, Score):
        checked = _score(name, value.value)
        return value._replace(value=checked.value, why=value.why or checked.why)
    if value is None:
        return Score(math.nan, why="returned None")
    number = value.item() if getattr(value, "shape", None) == () else value  # numpy and torch scalars
    if not isinstance(number, Real):
        raise RelgradError(f"reward {name!r} returned {_kind(value)} for a completion; return a number or None")
    number = float(number)
    return Score(number) if math.isfinite(number) else Score(math.nan, why=f"returned {number}")


def _kind(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:60] + '…'}"
