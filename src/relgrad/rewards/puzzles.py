"""1 for a solution, less for an answer that is only well-formed, by the verifier of the puzzle; for the task kind `puzzles`."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from relgrad.core.errors import RelgradError
from relgrad.core.protocols import Reward
from relgrad.core.settings import Strict
from relgrad.core.types import Output, Prompt, Score
from relgrad.environments.puzzles import PUZZLES
from relgrad.rewards._columns import column


class Settings(Strict):
    """What a well-formed answer is worth that solves nothing."""

    well_formed: float = Field(0.1, ge=0, lt=1, description="score of an answer that is well-formed and wrong")


def build(settings: Settings) -> Reward:
    """Scores are 1, `well_formed` or 0. White space around an answer does not count."""

    def puzzles(prompt: Prompt, outputs: Sequence[Output]) -> list[Score]:
        name, question = (column(prompt, key, "puzzles") for key in ("puzzle", "question"))
        if name not in PUZZLES:
            raise RelgradError(
                f"reward puzzles: the column puzzle has {name!r}; it must be one of {', '.join(PUZZLES)}"
            )
        verdicts = [PUZZLES[name].judge(question, output.text.strip()) for output in outputs]
        return [Score(1.0 if v.solved else settings.well_formed * v.well_formed) for v in verdicts]

    return puzzles
