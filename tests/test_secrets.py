"""Secrets of a recipe: named, read where they are used, and found in no file that a run leaves, nor in what it says."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml
from typer.testing import CliRunner

from relgrad.commands import cli, endings
from relgrad.core import registry, secrets
from relgrad.core.errors import RelgradError
from relgrad.core.run_folder import RunDir
from relgrad.core.settings import Component, Strict, settings_of
from relgrad.runs.build import resolve
from relgrad.runs.recipe import parse_recipe
from relgrad.runs.tracking import JsonLines, Trackers

VALUE = 'k9-"quoted"-\\and-long'
"""Written in JSON and YAML it looks different."""

MINE = """
def make(api_key, headers):
    calls = []
    def score(completions):
        calls.append(1)
        if len(calls) in (1, 3):  # once in an evaluation, once in training
            raise ConnectionError(f"401 for {api_key} and {headers['Authorization']}")
        return [float(len(c)) for c in completions]
    return score
"""


def recipe(**arguments: object) -> dict[str, object]:
    return {
        "name": "kept",
        "policy": {"kind": "autoregressive", "model": "tiny:32x1", "max_completion_length": 4},
        "task": {"kind": "digits", "length": 4},
        "rewards": [{"kind": "function", "function": "mine.py:make", "arguments": arguments}],
        "grpo": {"steps": 1, "num_prompts": 2, "num_generations": 2},
        "evaluation": {"num_prompts": 2, "num_generations": 1},
    }


def run(folder: Path, **arguments: object) -> str:
    (folder / "kept.yaml").write_text(yaml.safe_dump(recipe(**arguments)))
    result = CliRunner().invoke(cli.app, ["run", "kept.yaml"], env={"COLUMNS": "300", "NO_COLOR": "1"})
    return f"{result.exit_code} {result.output}"


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_values", set())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MY_KEY", VALUE)
    monkeypatch.setenv("SAME_KEY", VALUE)
    return tmp_path


def test_a_run_leaves_its_secrets_nowhere(folder: Path) -> None:
    headers = {"Authorization": "env:MY_KEY"}
    said = run(folder, api_key="env:MY_KEY", headers=headers)
    assert said.startswith("0 "), said
    files = [path for path in (folder / "runs").rglob("*") if path.is_file()]
    assert {"recipe.yaml", "report.html", "metrics.jsonl"} <= {path.name for path in files}
    for spelled in (VALUE, "k9-", "and-long"):
        assert [path.name for path in files if spelled.encode() in path.read_bytes()] == []
        assert spelled not in said
    samples = (folder / "runs/kept/1-grpo/samples/step_000001.jsonl").read_text()
    evaluated = (folder / "runs/kept/1-grpo/evaluations.jsonl").read_text()
    assert "401 for [redacted] and [redacted]" in samples + evaluated
    written = yaml.safe_load((folder / "runs/kept/1-grpo/recipe.yaml").read_text())
    assert written["rewards"][0]["arguments"] == {"api_key": "env:MY_KEY", "headers": headers}
    assert "finished before" in run(folder, api_key="env:SAME_KEY", headers=headers), "the same recipe by another name"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"api_key": "written-out"}, r"rewards\.0\.arguments\.api_key: this looks like a secret"),
        (
            {"headers": {"Authorization": ["Bearer abc"]}},
            r"headers\.Authorization\.0: this looks like a secret.*env:NAME",
        ),
        ({"url": "https://me:word@host"}, r"arguments\.url: this looks like a secret"),
        ({"judge_key": "0123456789abcdef"}, r"arguments\.judge_key: this looks like a secret"),
        ({"note": "hf_abcdefgh12345678"}, r"arguments\.note: this looks like a secret"),
        (
            {"api_key": "env:NOT_THERE"},
            r"api_key: env:NOT_THERE names the environment variable NOT_THERE, which is not set",
        ),
        ({"api_key": "env:EMPTY"}, r"names the environment variable EMPTY, which is empty; export EMPTY="),
        ({"api_key": "env:MY-KEY"}, r"'env:MY-KEY' names no environment variable"),
    ],
)
def test_what_is_refused_before_anything_is_loaded(
    arguments: dict[str, object], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMPTY", "")
    with pytest.raises(RelgradError, match=message) as refused:
        resolve(parse_recipe(recipe(**arguments)))
    assert not any(text in str(refused.value) for text in ("written-out", "abc", "word", "12345678"))


def test_pieces_of_text_and_numbers_are_no_secrets() -> None:
    ordinary = {
        "eos_token": "</s>",
        "token": "<think>",
        "max_tokens": "many",
        "token_id": 5,
        "url": "https://host/x@y",
        "key": "first_answer",
    }
    secrets.require_references(ordinary, "policy")
    assert secrets.without_secrets(ordinary) == ordinary


@pytest.mark.parametrize("room", registry.ROOMS)
def test_no_setting_of_a_built_in_kind_is_taken_for_a_secret(room: str) -> None:
    for kind in registry.kinds(room):
        fields = registry.find(room, kind).Settings.model_fields
        assert [name for name in fields if secrets.is_secret(name, "text")] == [], kind


class Keyed(Strict):
    key: str
    many: tuple[str, ...] = ()
    size: int = 1


def test_references_are_resolved_where_they_are_used_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "first-value")
    monkeypatch.setenv("SHORT", "ab")
    component = Component.model_validate({"kind": "mine", "key": "env:A_KEY", "many": ["x", "env:SHORT"]})
    settings = settings_of(component, Keyed, "policy")
    assert (settings.key, settings.many) == ("first-value", ("x", "ab"))
    assert component.options == {"key": "env:A_KEY", "many": ["x", "env:SHORT"]}
    monkeypatch.setenv("ODD", VALUE)
    secrets.resolved("env:ODD", "rewards.0")
    for spelled in (VALUE, repr(VALUE), json.dumps(VALUE), quote(VALUE, safe="")):
        assert "and-long" not in secrets.hide(f"refused {spelled}")
    assert secrets.hide("cab: first-value") == "cab: [redacted]", "short values cannot be told from ordinary text"
    assert secrets.hide_in({"a": ["first-value", 1.5, None]}) == {"a": ["[redacted]", 1.5, None]}
    wrong = Component.model_validate({"kind": "mine", "key": "x", "size": "env:A_KEY"})
    with pytest.raises(RelgradError, match=r"size: Input should be a valid integer.*received '\[redacted\]'"):
        settings_of(wrong, Keyed, "policy")


def test_errors_and_tracebacks_are_shown_without_secrets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("A_KEY", "first-value")
    monkeypatch.setenv("THEIR_TOKEN", "second-value")
    secrets.resolved({"key": "env:A_KEY"}, "rewards.0")
    endings.say("error", "401 for first-value and second-value at https://me:word@host", style="bold")
    try:
        raise ValueError("first-value hf_abcdefgh12345678")
    except ValueError as error:
        endings.show_traceback(type(error), error, error.__traceback__)
    said = capsys.readouterr().err
    assert "error: 401 for [redacted] and [redacted] at https://[redacted]@host" in said
    assert said.endswith("ValueError: [redacted] [redacted]\n")


def test_a_tracker_that_quotes_its_key_is_dropped_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def log(self, step: int, metrics: object) -> None:
            raise ConnectionError("401 for first-value")

        def close(self) -> None:
            pass

    monkeypatch.setenv("A_KEY", "first-value")
    secrets.resolved("env:A_KEY", "rewards.0")
    warnings: list[str] = []
    with Trackers([JsonLines(RunDir(tmp_path)), Failing()], warnings.append) as trackers:
        trackers.log(1, {"reward": 0.5})
    assert warnings == ["Failing stopped at step 1 (ConnectionError('401 for [redacted]')); metrics.jsonl goes on"]


def test_a_report_of_a_folder_with_a_secret_does_not_show_it(folder: Path) -> None:
    from relgrad.monitor.report.read import read_stage

    old = recipe(api_key="written-out", headers={"Authorization": "env:MY_KEY"})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(old))
    shown = read_stage(folder)
    assert "written-out" not in shown.recipe_text
    assert "env:MY_KEY" in shown.recipe_text
