"""Small puzzles with exact verifiers: permutations, Sudoku of 4 x 4, Countdown. See environments/puzzles."""

from __future__ import annotations

import itertools
from random import Random

from pydantic import Field

from relgrad.core.errors import RelgradError
from relgrad.core.settings import Strict
from relgrad.core.types import Prompt
from relgrad.environments.puzzles import PUZZLES, Name
from relgrad.tasks import Task

_ROUNDS = 50
"""How many times the wanted number of questions is made before a puzzle counts as too small."""


class Settings(Strict):
    """Questions are distinct, and no part has one of another's; answers (the 288 grids of Sudoku) may be the same."""

    puzzle: Name = "countdown"
    train_size: int = Field(800, ge=1)
    held_out_size: int = Field(150, ge=0, description="puzzles to validate by")
    test_size: int | None = Field(None, ge=0, description="puzzles to test by; null: as many as to validate by")
    right: float = Field(
        1.0,
        ge=0,
        le=1,
        description="share of training completions that are answers; the others are well-formed guesses",
    )


def load(settings: Settings, seed: int) -> Task:
    """Columns: `puzzle` and `question`, which the reward reads, `answer` (one that is right), and `completion` for supervised
    training: the answer, or a guess in a share of 1 - `right` of the training part.

    The puzzles to validate by depend on `puzzle`, `held_out_size` and `seed` alone. Raises RelgradError where there are fewer
    puzzles than the sizes want.
    """
    puzzle = PUZZLES[settings.puzzle]
    seen = set[str]()
    sizes = {
        "held_out": settings.held_out_size,
        "train": settings.train_size,
        "test": settings.held_out_size if settings.test_size is None else settings.test_size,
    }
    made: dict[str, list[tuple[str, str]]] = {}
    for part, size in sizes.items():
        random = Random(f"{seed}/{part}")
        made[part] = []
        for _ in range(_ROUNDS * size):
            question, answer = puzzle.make(random)
            if question not in seen:
                seen.add(question)
                made[part].append((question, answer))
            if len(made[part]) == size:
                break
        if len(made[part]) < size:
            raise RelgradError(
                f"task puzzles, puzzle={settings.puzzle}: train_size + held_out_size + test_size = {sum(sizes.values())} puzzles "
                f"are wanted, and hardly more than {len(seen)} are different; lower the sizes"
            )
    numbers, teacher = itertools.count(), Random(f"{seed}/teacher")
    parts = []
    for part in ("train", "held_out", "test"):
        prompts = []
        for question, answer in made[part]:
            guessed = part == "train" and teacher.random() >= settings.right
            completion = puzzle.guess(question, teacher) if guessed else answer
            columns = {"puzzle": settings.puzzle, "question": question, "answer": answer, "completion": completion}
            prompts.append(Prompt(f"{question}:", columns, next(numbers)))
        parts.append(prompts)
    return Task(
        f"puzzles-{settings.puzzle}",
        parts[0],
        parts[1],
        parts[2] or None,
        ask=lambda text: text.removesuffix(":") + ":",
    )
