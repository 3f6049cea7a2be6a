"""Numbers and text in recipes: what stands in quotes is text, 1e-4 is a number, and the field has the last word."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import BaseModel

from relgrad.core.errors import RelgradError
from relgrad.core.settings import Component, Exponent, Strict, checked, settings_of
from relgrad.runs.build import resolve
from relgrad.runs.recipe import load_recipe, parse_recipe
from relgrad.runs.yaml_text import read_yaml, write_yaml

RECIPE = """
name: "1e5"
policy: {kind: autoregressive, model: 4e51288, lora: {r: 1e1, target_modules: [1e1]}}
task: {kind: dataset, path: somebody/data, revision: "4e51288", config: 1e3}
rewards:
  - {kind: function, function: "a.py:make", weight: 5e-1, arguments: {code: "7e3", rate: 1e-4, hash: 4e51288, all: ["1e3", 1E3]}}
grpo: {learning_rate: 1e-4, steps: 1e1, beta: "1e-2"}
"""


def test_the_field_says_what_is_text_and_what_a_number(tmp_path: Path):
    (tmp_path / "r.yaml").write_text(RECIPE)
    stage = resolve(load_recipe(tmp_path / "r.yaml")).stages[0]
    policy, task, (reward,) = stage.policy.options, stage.task.options, stage.rewards
    assert (stage.name, policy["model"], task["revision"], task["config"]) == ("1e5", "4e51288", "4e51288", "1e3")
    assert policy["lora"]["r"] == 10
    assert policy["lora"]["target_modules"] == ["1e1"]
    assert reward.weight == 0.5
    assert reward.options["arguments"] == {"code": "7e3", "rate": 1e-4, "hash": "4e51288", "all": ["1e3", 1000.0]}
    assert type(reward.options["arguments"]["rate"]) is float
    assert (stage.grpo.learning_rate, stage.grpo.steps, stage.grpo.beta) == (1e-4, 10, 1e-2)


def test_overrides_are_read_as_the_file_is():
    """A shell takes the quotes away, so that a field of text has to know text without them."""
    bare = read_yaml(RECIPE, "r.yaml") | {"grpo": {}}
    overrides = ["name=7e3", "task.revision=1e5", 'rewards.0.arguments={code: "7e3"}', "grpo.learning_rate=3e-4"]
    stage = resolve(parse_recipe(bare, overrides)).stages[0]
    assert (stage.name, stage.task.options["revision"], stage.grpo.learning_rate) == ("7e3", "1e5", 3e-4)
    assert stage.rewards[0].options["arguments"] == {"code": "7e3"}


def test_what_is_written_is_read_back_as_it_is():
    """By this reader and by the library's own; and a recipe that was written is the recipe of the run."""
    stage = resolve(parse_recipe(read_yaml(RECIPE, "r.yaml"))).stages[0]
    text = write_yaml(stage.used)
    assert read_yaml(text, "x") == yaml.safe_load(text) == stage.used
    assert resolve(parse_recipe(read_yaml(text, "x"))).stages[0].used == stage.used


class Inner(BaseModel):
    name: str = ""
    size: float | None = None


class Fields(Strict):
    text: str | None = None
    path: Path | None = None
    choice: Literal["1e1", "2e2"] | None = None
    number: float = 0
    either: float | str = 0.0
    anything: Any = None
    texts: tuple[str, ...] = ()
    named: dict[str, str] | None = None
    numbers: dict[str, float] | None = None
    inner: tuple[Inner, ...] = ()
    one: Inner | None = None
    part: Component | None = None


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("text: 1e3", "1e3"),
        ("path: 1e3", Path("1e3")),
        ("choice: 1e1", "1e1"),
        ("number: 1e3", 1000.0),
        ("either: 1e3", 1000.0),
        ("anything: 1e3", 1000.0),
        ("anything: '1e3'", "1e3"),
        ("anything: {a: [1e3, {b: '1e3'}]}", {"a": [1000.0, {"b": "1e3"}]}),
        ("texts: [1e3, x]", ("1e3", "x")),
        ("named: {a: 1e3}", {"a": "1e3"}),
        ("numbers: {a: 1e3}", {"a": 1000.0}),
        ("inner: [{name: 1e3, size: 1e3}]", (Inner(name="1e3", size=1000.0),)),
        ("one: {name: 1e3, size: 1e3}", Inner(name="1e3", size=1000.0)),
    ],
)
def test_every_kind_of_field(written: str, value: Any):
    fields = checked(read_yaml(written, "x"), Fields, "x")
    (name,) = fields.model_fields_set
    assert getattr(fields, name) == value
    assert not isinstance(getattr(fields, name), Exponent)


def test_a_section_is_read_by_the_settings_of_its_kind():
    """Until its kind is known, what it holds is neither."""
    part = checked(read_yaml("part: {kind: k, text: 1e3, number: 1e3, inner: [{name: 1e3}]}", "x"), Fields, "x").part
    fields = settings_of(part, Fields, "part")
    assert (fields.text, fields.number, fields.inner) == ("1e3", 1000.0, (Inner(name="1e3"),))


@pytest.mark.parametrize("number", ["1e-4", "1E+4", "-1.5e3", "+1.e3", ".5e-3", "1.0e-4", "1e0"])
def test_numbers_with_an_exponent(number: str):
    assert read_yaml(number, "x") == float(number)
    assert read_yaml(f'"{number}"', "x") == number == read_yaml(write_yaml(number), "x")


@pytest.mark.parametrize("text", ["e3", "1e", "1e3x", "0x1e3z", "1e3.5", "1e-", "4e51288", "a1e3", "1_000e3", "٣e3"])
def test_text_that_is_no_number(text: str):
    assert read_yaml(text, "x") == text


def test_an_emoji_in_the_escapes_of_json_is_whole_and_half_of_one_is_refused():
    assert read_yaml(r'"smile \ud83d\ude00"', "x") == "smile 😀"
    with pytest.raises(
        RelgradError, match=r"r\.yaml: not valid YAML: half a character, '\\ud83d', after 6 others.*\n.*line 2"
    ):
        read_yaml('a: 1\nb: "smile \\ud83d"', "r.yaml")


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3\n", "part: {a: 1, a: 1}"])
def test_a_key_that_is_written_twice_is_refused(text: str):
    with pytest.raises(RelgradError, match="'a' is written twice"):
        read_yaml(text, "x")


def test_a_merged_mapping_may_be_changed():
    assert read_yaml("one: &one {a: 1, b: 2}\ntwo: {<<: *one, a: 3}\n", "x")["two"] == {"a": 3, "b": 2}


@pytest.mark.parametrize("text", ["a: &a [*a]\n", "a: &a {b: {c: *a}}\n"])
def test_what_contains_itself_is_refused(text: str):
    with pytest.raises(RelgradError, match="an alias stands inside of what it stands for"):
        read_yaml(text, "x")
