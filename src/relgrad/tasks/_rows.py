"""From rows (column -> value) to prompts: what the tasks that read data have in common."""

from __future__ import annotations

import difflib
import hashlib
import logging
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field, field_validator, model_validator

from relgrad.core.errors import RelgradError
from relgrad.core.settings import Strict
from relgrad.core.types import SYSTEM_ROLES, Message, Prompt
from relgrad.core.whole_text import half_character
from relgrad.tasks import Task

Row = Mapping[str, Any]
HELD_OUT = 0.1
"""Share of the distinct prompts that is kept to validate by where nothing is said."""

logger = logging.getLogger(__name__)


class Wording(Strict):
    """How a row becomes the prompt that the policy sees."""

    template: str | None = Field(
        None, description='built from columns with str.format: "Question: {question}\\nAnswer:"'
    )
    system: str | None = Field(None, description="system message; turns a text prompt into a chat")
    chat: bool = Field(False, description="send a text prompt as one user message of a chat")

    @field_validator("template", "system")
    @classmethod
    def _whole_characters(cls, text: str | None) -> str | None:
        if wrong := half_character(text):
            raise ValueError(f"has {wrong}; write the whole character")
        return text


class RowSettings(Wording):
    """Settings of every task that reads rows."""

    prompt_column: str = Field("prompt", description="text or a list of {role, content}; not read with a template")
    held_out_fraction: float = Field(
        HELD_OUT, ge=0, lt=1, description="share of the distinct prompts kept to validate by"
    )
    test_fraction: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the distinct prompts kept to test by; 0, without other test rows: no test part",
    )
    limit: int | None = Field(None, ge=1, description="read only the first rows of the training data")

    @model_validator(mode="after")
    def _room_to_train(self) -> RowSettings:
        if self.held_out_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"held_out_fraction={self.held_out_fraction} and test_fraction={self.test_fraction} leave nothing to train on; "
                "together they must be less than 1"
            )
        return self


def prompts_of(rows: Sequence[Row], settings: RowSettings, source: str, first_id: int = 0) -> list[Prompt]:
    """One Prompt per row; ids count up from `first_id` in the order of the rows.

    Every row gets every column of the source (None where a row lacks it), so that rewards see whole columns.
    Raises RelgradError when there is no row, a needed column is missing, or a prompt is neither text nor a chat.
    """
    if not rows:
        raise RelgradError(f"{source}: the dataset is empty; a task needs at least one row")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if settings.template is None and settings.prompt_column not in columns:
        fix = "set prompt_column, or a template such as 'Question: {question}'"
        raise RelgradError(f"{source}: {missing_column(settings.prompt_column, columns)}; {fix}")
    prompts = []
    for number, row in enumerate(rows):
        whole = {name: row.get(name) for name in columns}
        for name, value in whole.items():
            if wrong := half_character(value) or half_character(name):
                raise RelgradError(
                    f"{source}, row {number + 1}: column {name!a} has {wrong}. It comes from a text that was cut inside of a "
                    "character (an emoji, say); mend or delete it"
                )
        value = whole.pop(settings.prompt_column) if settings.template is None else None
        try:
            content = content_of(whole, settings, value)
        except ValueError as error:
            raise RelgradError(f"{source}, row {number + 1}: {error}") from None
        prompts.append(Prompt(content, whole, first_id + number))
    return prompts


def row_that_fails(read: Callable[[int], Any], count: int) -> int | None:
    """Number, from 1, of the first row that cannot be read as text; None where every row alone can."""
    for number in range(count):
        try:
            read(number)
        except UnicodeDecodeError:
            return number + 1
    return None


def content_of(columns: Row, wording: Wording, value: Any) -> str | list[Message]:
    """The prompt's content: `value`, or the filled template, dressed as a chat where the settings ask for one.

    A chat that brings its own system message keeps it. Raises ValueError when the result is no prompt.
    """
    if wording.template is not None:
        value = _fill(wording.template, columns)
    if isinstance(value, str):
        if not value:
            raise ValueError("the prompt is empty text")
        if wording.system is None and not wording.chat:
            return value
        value = [{"role": "user", "content": value}]
    chat = _chat(value)
    if wording.system is not None and not any(message["role"] in SYSTEM_ROLES for message in chat):
        chat = [{"role": "system", "content": wording.system}, *chat]
    return chat


def asker(settings: Wording) -> Callable[[str], str | list[Message]]:
    """A Task's `ask`: a template with one column is filled with the text; with several, the text stands for the whole."""
    fields = {name for _, name, _, _ in string.Formatter().parse(settings.template or "") if name}

    def ask(text: str) -> str | list[Message]:
        if len(fields) > 1:
            return content_of({}, settings.model_copy(update={"template": None}), text)
        return content_of(dict.fromkeys(fields, text), settings, text)

    return ask


def _fill(template: str, columns: Row) -> str:
    try:
        return template.format_map(columns)
    except KeyError as error:
        raise ValueError(f"template {template!r}: {missing_column(error.args[0], columns)}") from None
    except (ValueError, IndexError, AttributeError, TypeError) as error:
        raise ValueError(f"template {template!r}: {error}; write {{{{ and }}}} for literal braces") from None


def _chat(value: Any) -> list[Message]:
    legal = isinstance(value, Sequence) and all(
        isinstance(m, Mapping) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value
    )
    if not legal or not value:
        raise ValueError(f"a prompt is text or a list of {{role, content}} messages, received {_short(value)}")
    return [dict(m) for m in value]


def missing_column(name: str, columns: Sequence[str] | Row) -> str:
    """Says that a column is missing, which columns there are, and which comes nearest."""
    near = difflib.get_close_matches(name, list(columns), 1, cutoff=0.5)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"no column {name!r}; the columns are {', '.join(map(repr, columns)) or 'none'}{hint}"


@dataclass(frozen=True)
class Parts:
    """What a task is made of: rows to train on, and those that come from sources of their own (None: split off the first)."""

    train: Sequence[Prompt]
    validation: Sequence[Prompt] | None = None
    test: Sequence[Prompt] | None = None


def task_of(name: str, parts: Parts, settings: RowSettings, seed: int) -> Task:
    """The three parts, none with a prompt of another: what is to test by is dropped from the others, what is to validate by from
    those to train on, both with a warning.

    Where validation or test have no source of their own, the fractions of the settings are split off the rows to train on, the
    same ones for the same seed in whatever order they come: of the distinct prompts, ordered by their hash, the first are to
    validate by and the next to test by (at least one each, where the fraction is not 0). Rows with the same prompt share a hash,
    so they land on one side. Raises RelgradError where nothing is left to train on.
    """
    train, validation, test = parts.train, parts.validation, parts.test
    if test is not None:
        train = _without(name, train, test, "prompts that are also to test by")
        _require(name, train)
    fractions = (0.0 if validation is not None else settings.held_out_fraction, settings.test_fraction)
    first, second, train = _split(name, train, fractions, seed)
    test = second or None if test is None else test
    if validation is None:
        validation = first
    elif test is not None:
        validation = _without(name, validation, test, "prompts to validate by that are also to test by")
    train = _without(name, train, validation, "training prompts that are also held out")
    _require(name, train)
    return Task(name, train, validation, test, asker(settings))


def _require(name: str, train: Sequence[Prompt]) -> None:
    if not train:
        raise RelgradError(f"{name}: every training prompt is also held out; give held-out sources of other prompts")


def _without(name: str, prompts: Sequence[Prompt], others: Sequence[Prompt], what: str) -> list[Prompt]:
    """Those that are none of the others; where some are, a warning says how many, and `what` they are."""
    keys = {_key(p) for p in others}
    kept = [p for p in prompts if _key(p) not in keys]
    if dropped := len(prompts) - len(kept):
        logger.warning("%s: dropped %d of %d %s", name, dropped, len(prompts), what)
    return kept


def _split(
    name: str, prompts: Sequence[Prompt], fractions: tuple[float, float], seed: int
) -> tuple[list[Prompt], list[Prompt], list[Prompt]]:
    """(first share, second share, rest). Raises RelgradError where there are fewer distinct prompts than parts."""
    ranks = {_key(p): hashlib.sha256(f"{seed}/{_key(p)}".encode()).digest() for p in prompts}
    parts = 1 + sum(fraction > 0 for fraction in fractions)
    if len(ranks) < parts > 1:
        count = "one distinct prompt" if len(ranks) == 1 else f"{len(ranks)} distinct prompts"
        raise RelgradError(
            f"{name}: {count} cannot be split in {parts} parts; set held_out_fraction and test_fraction to 0 or add prompts"
        )
    shares = [max(round(fraction * len(ranks)), 1) if fraction else 0 for fraction in fractions]
    shares[1] = min(shares[1], len(ranks) - parts + 1) if fractions[1] else 0
    shares[0] = min(shares[0], len(ranks) - 1 - shares[1])
    order = sorted(ranks, key=ranks.__getitem__)
    first, second = set(order[: shares[0]]), set(order[shares[0] : sum(shares)])
    kept = [p for p in prompts if _key(p) not in first | second]
    return [p for p in prompts if _key(p) in first], [p for p in prompts if _key(p) in second], kept


def _key(prompt: Prompt) -> str:
    content = prompt.content
    return content if isinstance(content, str) else repr([(m["role"], m["content"]) for m in content])


def _short(value: Any, length: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}…"
