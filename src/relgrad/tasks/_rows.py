"""From rows (column -> value) to prompts: what the tasks that read data have in common."""

from __future__ import annotations

import difflib
import hashlib
import logging
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import Field

from relgrad.core.errors import RelgradError
from relgrad.core.settings import Strict
from relgrad.core.types import Message, Prompt
from relgrad.tasks import Task

Row = Mapping[str, Any]
logger = logging.getLogger(__name__)


class Wording(Strict):
    """How a row becomes the prompt that the policy sees."""

    template: str | None = Field(
        None, description='built from columns with str.format: "Question: {question}\\nAnswer:"'
    )
    system: str | None = Field(None, description="system message; turns a text prompt into a chat")
    chat: bool = Field(False, description="send a text prompt as one user message of a chat")


class RowSettings(Wording):
    """Settings of every task that reads rows."""

    prompt_column: str = Field("prompt", description="text or a list of {role, content}; not read with a template")
    held_out_fraction: float = Field(0.1, ge=0, lt=1, description="share of the distinct prompts kept to judge by")
    limit: int | None = Field(None, ge=1, description="read only the first rows of the training data")


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
        value = whole.pop(settings.prompt_column) if settings.template is None else None
        try:
            content = content_of(whole, settings, value)
        except ValueError as error:
            raise RelgradError(f"{source}, row {number + 1}: {error}") from None
        prompts.append(Prompt(content, whole, first_id + number))
    return prompts


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
    if wording.system is not None and chat[0]["role"] != "system":
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


def split_task(name: str, prompts: Sequence[Prompt], settings: RowSettings, seed: int) -> Task:
    """Keep `held_out_fraction` of the distinct prompts apart, the same ones for the same seed in whatever order they come.

    A prompt belongs to the held-out side when its hash is among the round(fraction x distinct) smallest (at least one,
    where fraction > 0); rows with the same prompt share a hash, so they land on one side. `fraction` 0 holds out none.
    """
    fraction = settings.held_out_fraction
    ranks = {_key(p): hashlib.sha256(f"{seed}/{_key(p)}".encode()).digest() for p in prompts}
    if fraction and len(ranks) < 2:
        raise RelgradError(f"{name}: one distinct prompt cannot be split; set held_out_fraction to 0 or add prompts")
    count = min(max(round(fraction * len(ranks)), 1), len(ranks) - 1) if fraction else 0
    chosen = set(sorted(ranks, key=ranks.__getitem__)[:count])
    train = [p for p in prompts if _key(p) not in chosen]
    return Task(name, train, [p for p in prompts if _key(p) in chosen], asker(settings))


def given_task(name: str, train: Sequence[Prompt], held_out: Sequence[Prompt], settings: RowSettings) -> Task:
    """A task whose held-out prompts come from a source of their own; training prompts that equal one are dropped."""
    keys = {_key(p) for p in held_out}
    kept = [p for p in train if _key(p) not in keys]
    if dropped := len(train) - len(kept):
        logger.warning("%s: dropped %d of %d training prompts that are also held out", name, dropped, len(train))
    if not kept:
        raise RelgradError(f"{name}: every training prompt is also held out; give a held-out source of other prompts")
    return Task(name, kept, held_out, asker(settings))


def _key(prompt: Prompt) -> str:
    content = prompt.content
    return content if isinstance(content, str) else repr([(m["role"], m["content"]) for m in content])


def _short(value: Any, length: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}…"
