"""1 where a list program does what the examples show, those that the prompt does not show included; else 0."""

from __future__ import annotations

from collections.abc import Sequence

from relgrad.core.errors import RelgradError
from relgrad.core.protocols import Reward
from relgrad.core.settings import Strict
from relgrad.core.types import Output, Prompt, Score
from relgrad.environments.lists.examples import Example, agrees, read
from relgrad.environments.lists.program import Program
from relgrad.rewards._columns import column

PARTS = {
    "visible": "1 where the program does what the shown examples show",
    "parses": "1 where the text is a program of list operators",
    "operators": "how many it has",
}
"""What the parts of a score mean."""


class Settings(Strict):
    """`hidden` is the column with the examples that the prompt does not show, pairs of lists."""

    hidden: str = "hidden"


def build(settings: Settings) -> Reward:
    """A text that is no program is wrong, and its part `parses` 0."""

    def list_program(prompt: Prompt, outputs: Sequence[Output]) -> list[Score]:
        visible = read(prompt.text)
        pairs = column(prompt, settings.hidden, "list_program")
        hidden = tuple(Example(tuple(given), tuple(result)) for given, result in pairs)
        known: dict[str, Score] = {}
        for output in outputs:
            if output.text not in known:
                known[output.text] = _score(output.text, visible, hidden)
        return [known[output.text] for output in outputs]

    return list_program


def _score(text: str, visible: Sequence[Example], hidden: Sequence[Example]) -> Score:
    try:
        program = Program.parse(text)
    except RelgradError:
        return Score(0.0, {"visible": 0.0, "parses": 0.0, "operators": 0.0})
    shown = agrees(program, visible)
    right = shown and agrees(program, hidden)
    return Score(float(right), {"visible": float(shown), "parses": 1.0, "operators": float(len(program.steps))})
