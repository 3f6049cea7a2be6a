"""Mistakes in nested sections, and columns that are not there: what is said, and when."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from relgrad.core.errors import RelgradError
from relgrad.core.settings import Strict, checked
from relgrad.runs.recipe import parse_recipe
from relgrad.runs.run import run_recipe


class Cat(Strict):
    kind: Literal["cat"] = "cat"
    whiskers: int = 3


class Dog(Strict):
    kind: Literal["dog"] = "dog"
    barking: float = 1.0


class House(Strict):
    chimney: int = 1
    cat: Cat | None = None
    dogs: tuple[Dog, ...] = ()
    pet: Annotated[Cat | Dog, Field(discriminator="kind")] = Cat()
    other: Cat | Dog | None = None


@pytest.mark.parametrize(
    ("data", "near", "keys"),
    [
        ({"cat": {"wiskers": 1}}, "whiskers", "kind, whiskers"),
        ({"dogs": [{}, {"barkin": 1}]}, "barking", "barking, kind"),
        ({"pet": {"kind": "dog", "barkin": 1}}, "barking", "barking, kind"),
        ({"other": {"kind": "cat", "wiskers": 1}}, "whiskers", "kind, whiskers"),
        ({"chimny": 1}, "chimney", "cat, chimney, dogs, other, pet"),
    ],
)
def test_an_unknown_key_is_compared_with_the_keys_beside_it(data: object, near: str, keys: str) -> None:
    with pytest.raises(RelgradError) as raised:
        checked(data, House, "house")  # type: ignore[arg-type]
    line = str(raised.value).splitlines()[1]
    assert f"Did you mean {near!r}? Known here: {keys}" in line


def test_a_column_that_a_reward_cannot_do_without_is_missed_before_the_policy_is_loaded(tmp_path: Path) -> None:
    rows = [{"prompt": f"Write add{number}.", "test": f"assert add{number}(1, 1) == 2"} for number in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = parse_recipe(
        {
            "name": "r", "out": str(tmp_path), "policy": {"kind": "autoregressive", "model": "nobody/has-this-model"},
            "task": {"kind": "file", "path": str(tmp_path / "rows.jsonl")}, "rewards": [{"kind": "code"}],
        }
    )  # fmt: skip
    with pytest.raises(RelgradError, match=r"'code' reads the column 'tests': .*did you mean 'test'.*task is 'file'"):
        run_recipe(recipe)
