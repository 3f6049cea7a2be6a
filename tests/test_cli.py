"""The command line as a user meets it: help, exit codes, errors without tracebacks, the doctor."""

from __future__ import annotations

import importlib.util
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

import forked
import relgrad
from relgrad.commands import doctor
from relgrad.commands.cli import app

ROOT = Path(__file__).parents[1]
COMMANDS = (
    "run", "sample", "evaluate", "compare", "audit", "report", "demo", "prepare", "inspect-batch", "split", "recipes",
    "doctor",
)  # fmt: skip
needs_run = pytest.mark.skipif(
    importlib.util.find_spec("relgrad.runs.run") is None, reason="relgrad.runs.run is missing"
)

RECIPE = """
policy: {kind: autoregressive, model: nowhere}
task: {kind: digits}
rewards: [{kind: exact}]
grpo: {steps: 7, num_prompts: 2, num_generations: 4}
"""


def relgrad_cli(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, its output wide enough not to wrap."""
    return forked.run("relgrad", *arguments, cwd=cwd, environment={"COLUMNS": "200", "NO_COLOR": "1"})


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    return path


def test_help_lists_every_command() -> None:
    result = relgrad_cli("--help")
    assert result.returncode == 0
    assert all(re.search(rf"^\W*{command}\s", result.stdout, re.M) for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_an_example(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert f"Example: relgrad {command}" in result.output


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output.strip()) == (0, relgrad.__version__)


def test_the_package_is_the_command_too(tmp_path: Path) -> None:
    """`python -m relgrad` is `relgrad`: its own name in messages, its exit codes."""
    command = [sys.executable, "-m", "relgrad"]
    shown = subprocess.run([*command, "--version"], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert (shown.returncode, shown.stdout.strip()) == (0, relgrad.__version__)
    refused = subprocess.run([*command, "report", "nowhere"], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert_bare_error(refused, "no run folder 'nowhere'")
    assert "Usage: relgrad" in subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=60).stdout


def test_wrong_usage_exits_2() -> None:
    assert relgrad_cli("run").returncode == 2
    assert relgrad_cli("fly").returncode == 2


# errors: the message alone, exit code 2


def assert_bare_error(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr + result.stdout
    for part in parts:
        assert part in result.stderr


@needs_run
def test_a_missing_recipe_is_one_clear_error(tmp_path: Path) -> None:
    assert_bare_error(relgrad_cli("run", "nowhere.yaml", cwd=tmp_path), "nowhere.yaml")


@needs_run
def test_an_unknown_key_names_the_nearest_known_one(recipe: Path) -> None:
    result = relgrad_cli("run", str(recipe), "grpo.num_generation=4", cwd=recipe.parent)
    assert_bare_error(result, "grpo.num_generation", "unknown key", "Did you mean 'num_generations'?")


@needs_run
def test_a_word_that_is_no_override_is_explained(recipe: Path) -> None:
    assert_bare_error(relgrad_cli("run", str(recipe), "steps", cwd=recipe.parent), "'steps'", "key.sub=value")


def test_a_report_of_no_run_is_one_clear_error(tmp_path: Path) -> None:
    assert_bare_error(relgrad_cli("report", "nowhere", cwd=tmp_path), "no run folder 'nowhere'")


@needs_run
def test_dry_run_shows_the_resolved_recipe_and_writes_nothing(recipe: Path) -> None:
    before = sorted(recipe.parent.rglob("*"))
    result = relgrad_cli("run", str(recipe), "grpo.steps=9", "grpo.beta=0.5", "--dry-run", cwd=recipe.parent)
    assert result.returncode == 0, result.stderr
    assert "# runs/mine/1-grpo: 9 GRPO steps, 2 prompts x 4 completions per batch; from the beginning" in result.stdout
    assert "  beta: 0.5" in result.stdout
    assert "sft:" not in result.stdout
    assert sorted(recipe.parent.rglob("*")) == before


@needs_run
def test_recipes_lists_the_built_in_ones() -> None:
    result = relgrad_cli("recipes")
    assert result.returncode == 0, result.stderr
    listed = {line.split()[0] for line in result.stdout.splitlines()[1:]}
    assert {"quick", "demo", "fill", "fill-quick", "fill-baseline"} <= listed


ENDINGS = """
import sys
from relgrad.commands import cli
from relgrad.core.errors import RelgradError

@cli.app.command()
def run(how: str) -> None:
    if how == "wait":
        print("waiting", flush=True)
        import time
        time.sleep(60)
    raise {"known": RelgradError("got 3 [x], allowed 1..2"), "unknown": ZeroDivisionError("oops")}[how]

sys.argv = ["relgrad", "run", *sys.argv[1:]]
cli.main()
"""


def ending(how: str) -> subprocess.Popen[str]:
    """The command line's own entry point with a `run` that ends as told."""
    command = [sys.executable, "-c", ENDINGS, how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_relgrad_error_is_printed_bare() -> None:
    process = ending("known")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (2, "", "error: got 3 [x], allowed 1..2\n")


def test_any_other_error_shows_its_traceback() -> None:
    process = ending("unknown")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith("Traceback")
    assert err.rstrip().endswith("ZeroDivisionError: oops")


def test_an_interrupt_exits_130_and_says_how_to_go_on() -> None:
    process = ending("wait")
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "continue from the last checkpoint with `relgrad run wait`" in err
    assert "Traceback" not in err


# doctor


def test_doctor_examines_this_machine() -> None:
    result = relgrad_cli("doctor")
    assert result.returncode == 0, result.stderr
    import torch

    for expected in (torch.__version__, "torch threads", "GFLOP/s", "GiB", "relgrad run quick", "SmolLM2-135M"):
        assert expected in result.stdout
    if importlib.util.find_spec("wandb") is None:
        assert "pip install 'relgrad[wandb]'" in result.stdout


def test_doctor_knows_every_extra_and_every_install_line_names_one() -> None:
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    assert set(doctor.EXTRAS) == extras - {"dev"}
    named = {
        extra
        for path in (ROOT / "src").rglob("*.py")
        for extra in re.findall(r"pip install 'relgrad\[([a-z]+)\]'", path.read_text())
    }
    assert named
    assert named <= extras


def test_a_missing_core_package_is_unhealthy() -> None:
    missing = doctor.Check("core", "torch", "missing", "")
    optional = doctor.Check("extras", "gguf", "note", "")
    assert not doctor.healthy([optional, missing])
    assert doctor.healthy([optional])
