"""A text to go on with: stretches that belong together, and parts of the text that share nothing."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from relgrad.core.errors import RelgradError
from relgrad.tasks import Task, continuation


def load(**settings) -> Task:
    return continuation.load(continuation.Settings(**settings), seed=0)


def test_a_target_goes_on_where_its_prompt_ends(tmp_path: Path) -> None:
    words = [f"w{number}" for number in range(40_000)]
    (tmp_path / "text.txt").write_text("\n\n".join(" ".join(words[i : i + 50]) for i in range(0, len(words), 50)))
    task = load(text=str(tmp_path / "text.txt"), prompt_length=30, length=60, held_out_size=20)
    assert len(task.train) > 1000
    assert (len(task.validation), len(task.test)) == (20, 20)
    seen = set[str]()
    for prompt in itertools.chain(task.train, task.validation, task.test):
        whole = (prompt.text + prompt.columns["completion"]).split(" ")
        first = int(whole[0][1:])
        assert whole == words[first : first + len(whole)]
        assert len(prompt.text) <= 30 < len(prompt.text) + 1 + len(words[first + len(prompt.text.split())])
        assert len(prompt.columns["completion"]) <= 61
        assert seen.isdisjoint(whole)
        seen |= set(whole)


def test_python_s_help_texts_are_enough() -> None:
    task = load()
    assert len(task.train) > 1000
    assert len({prompt.id for prompt in (*task.train, *task.validation, *task.test)}) == sum(
        map(len, (task.train, task.validation, task.test))
    )


def test_code_is_left_out_where_letters_are_asked_for() -> None:
    prose = load(letters=0.9).train
    assert 100 < len(prose) < len(load().train)
    for text in (text for prompt in prose for text in (prompt.text, prompt.columns["completion"].strip())):
        assert sum(character.isalpha() or character == " " for character in text) >= 0.9 * len(text)


def test_a_text_that_is_too_short_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("one two three\n")
    with pytest.raises(RelgradError, match=r"no stretch of 80 \+ 160 characters"):
        load(text=str(tmp_path / "text.txt"))
    (tmp_path / "long.txt").write_text(f"{'x' * 500} " * 20)
    with pytest.raises(RelgradError, match=r"no stretch of"):
        load(text=str(tmp_path / "long.txt"))
