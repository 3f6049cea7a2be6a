"""Web forms to fill in: the prompt tells what to enter, the answer is a plan, one step a line. See environments/forms.

Every form belongs to a family (library card, hotel booking ...), and a family to one split, for good: to train on, to validate
by, or to test by. Nothing that is to be entered into a form of one split, ticks apart, occurs in a prompt of another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Literal

from pydantic import Field, model_validator

from relgrad.core.errors import RelgradError
from relgrad.core.settings import Strict
from relgrad.core.types import Prompt
from relgrad.environments.forms.making import families, wording
from relgrad.environments.forms.making.generate import check_room, make
from relgrad.environments.forms.making.grammar import Grammar
from relgrad.environments.forms.making.wording import END, LONG_END, closed
from relgrad.tasks import Task

HELD_OUT_SEED = 11


class Settings(Strict):
    """`families` are those to train on; an empty list stands for all of the training split."""

    families: tuple[str, ...] = ()
    held_out: Literal["validation", "test"] = Field(
        "validation",
        description="families to validate by; test: everything is judged on the test families, in two parts",
    )
    train_size: int = Field(20_000, ge=1, description="forms per epoch")
    held_out_size: int = Field(200, ge=0, description="forms to validate by")
    test_size: int | None = Field(None, ge=0, description="forms to test by; null: as many as to validate by")

    @model_validator(mode="after")
    def _legal(self) -> Settings:
        if self.held_out == "test" and self.test_size:
            raise ValueError(
                f"held_out='test' judges everything on the test families, so test_size={self.test_size} has no forms of its own; "
                "drop held_out"
            )
        return self

    grammar: Grammar = Grammar()


def load(settings: Settings, seed: int) -> Task:
    """Columns: `plan` (the reference plan), `form` (plain data that rebuilds it), `values` (label -> value), `family`.

    Forms to judge by depend on the settings alone, not on `seed`: runs of several seeds are judged on the same ones. Raises
    RelgradError for a family that does not exist or is held out, and for a grammar whose `fits` is too small for a family.
    """
    training = families.names("train")
    for name in settings.families:
        if families.family(name).split != "train":
            raise RelgradError(
                f"forms: family {name!r} is held out for ever; to train on there are {', '.join(training)}"
            )
    test_size = settings.held_out_size if settings.test_size is None else settings.test_size
    judged: dict[families.Split, int] = {settings.held_out: settings.held_out_size}
    if settings.held_out != "test" and test_size:
        judged["test"] = test_size
    for name in (*(settings.families or training), *families.names(*judged)):
        check_room(name, settings.grammar)
    train = FormPrompts(settings.families or training, settings.train_size, f"{seed}/train", settings.grammar)
    plain = settings.grammar.model_copy(update={"foreign_labels": 0.0, "foreign_options": 0.0})
    validation, *test = (
        list(FormPrompts(families.names(split), size, f"{HELD_OUT_SEED}/{split}", plain))
        for split, size in judged.items()
    )
    return Task(f"forms-{settings.held_out}", train, validation, test[0] if test else None, ask=_ask(settings.grammar))


class FormPrompts(Sequence[Prompt]):
    """`size` prompts, each made when it is asked for, of families drawn with equal chance."""

    def __init__(self, names: Sequence[str], size: int, key: str, grammar: Grammar) -> None:
        self.names, self.size, self.key, self.grammar = tuple(names), size, key, grammar

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Prompt:  # type: ignore[override]
        if not -self.size <= index < self.size:
            raise IndexError(index)
        index %= self.size
        draw = Random(f"{self.key}/{index}")
        form = make(draw.choice(self.names), draw.randrange(2**40), self.grammar)
        columns = {"plan": wording.plan(form), "form": form.spec, "values": form.values, "family": form.family}
        return Prompt(wording.prompt(form), columns, index, form.family)


def _ask(grammar: Grammar) -> Callable[[str], str]:
    end = LONG_END if grammar.wording == "long" else END

    def ask(text: str) -> str:
        return text if text.endswith(end) else closed(f"{text.rstrip()}\n", grammar.wording, grammar.width)

    return ask
