"""Tasks: where prompts come from. One file a kind; `load(settings, seed)` gives a Task.

file.py           JSONL, JSON, CSV, Parquet
dataset.py        Hugging Face datasets
reasoning_gym.py  generated tasks of reasoning-gym
gsm8k.py          grade-school mathematics
competition_math.py problems of MATH
humaneval.py      functions to finish
mbpp.py           functions to write
list_programs.py  examples of what a program of list operators does
digits.py         digit strings to reverse, copy or sort
next_number.py    which number comes next?
puzzles.py        permutations, Sudoku of 4 x 4, Countdown
forms.py          web forms to fill in
site.py           pages of a site that somebody else wrote, to fill in
sites.py          pages of several sites, of which whole ones are held out
replies.py        posts to reply to
noisy_workflows.py descriptions of problems, to write workflows for
python.py         a task of the script that started the run
continuation.py   a text to go on with
masked_text.py    a text with holes, made in process
masked_stream.py  the same from a folder of files
masked_batches.py the same from the batch files of the diffusion-GPT trainer

Files whose name begins with _ are what they share: files and their rows, cases of a site, samples of masked
text, mixes of masks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from relgrad.core.types import Message, Prompt


def as_it_is(text: str) -> str | Sequence[Message]:
    """The text itself."""
    return text


@dataclass(frozen=True)
class Task:
    """Prompts in three parts that share none. Columns named in `Prompt.columns` reach every reward.

    train       what is trained on
    validation  what choices are made by while training: the best checkpoint, patience
    test        what the score before and after is of. Where a task has no test part of its own (`two_parts`), its
                validation prompts serve for both, and the report says so
    """

    name: str
    train: Sequence[Prompt]
    validation: Sequence[Prompt]
    own_test: Sequence[Prompt] | None = None
    ask: Callable[[str], str | Sequence[Message]] = field(default=as_it_is, compare=False)
    """How a person's own text becomes a prompt's content, worded as in training (`relgrad sample --prompt`)."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What the report tells of it beside its kind: short labels and what they say ("Masks", say)."""

    @property
    def two_parts(self) -> bool:
        """Whether the scores before and after are of the prompts that choices were made by."""
        return self.own_test is None

    @property
    def test(self) -> Sequence[Prompt]:
        return self.validation if self.own_test is None else self.own_test
