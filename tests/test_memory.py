"""Out of memory: an error that says what to lower, and nothing is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from relgrad.commands.cli import app
from relgrad.core.errors import RelgradError
from relgrad.core.memory import OutOfMemory, is_out_of_memory, spared
from relgrad.core.types import Example, Prompt
from relgrad.objectives.losses import PolicyLoss
from relgrad.policies.autoregressive import AutoregressivePolicy, Settings, build
from relgrad.policies.autoregressive.shared_engine import SharedEngine
from relgrad.rewards.combine import NamedReward, RewardSet
from relgrad.runs.recipe import parse_recipe
from relgrad.runs.run import run_recipe
from relgrad.training import checkpoint
from relgrad.training.grpo import Grpo, GrpoSettings
from relgrad.training.sft import Sft, SftSettings

PROMPTS = tuple(Prompt(f"{n}=", {}, n) for n in range(4))


def fill_memory(*_: Any, **__: Any) -> Any:
    """What a CPU's allocator says of a pebibyte."""
    return torch.empty(2**50, dtype=torch.uint8)


def code_points(completions: list[str], **columns: Any) -> list[float]:
    return [float(sum(map(ord, text)) % 97) for text in completions]


def policy() -> AutoregressivePolicy:
    return build(Settings(model="tiny:32x1", max_completion_length=3, device="cpu"), seed=0)


def test_every_way_of_saying_it_is_known() -> None:
    with pytest.raises(RuntimeError) as of_a_cpu:
        fill_memory()
    assert is_out_of_memory(of_a_cpu.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_commands_say_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relgrad.commands.doctor.examine", fill_memory)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 2
    assert "allocate memory" in result.stderr
    assert "draw less at once (-n, num_prompts, num_generations)" in result.stderr


def test_only_that_is_turned_into_advice() -> None:
    message = r"^out of memory while baking \(MemoryError\)\. Buy a larger oven$"
    with pytest.raises(OutOfMemory, match=message), spared("baking", "Buy a larger oven"):
        raise MemoryError
    with pytest.raises(RuntimeError, match="something else"), spared("baking", "Buy a larger oven"):
        raise RuntimeError("something else")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("generate", r"while drawing completions.*Lower grpo\.num_prompts \(2\) or grpo\.num_generations \(4\)"),
        ("score", r"while scoring completions.*Lower grpo\.micro_batch_tokens \(8192\)"),
    ],
)
def test_a_grpo_step_without_memory_was_not_begun(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, method: str, message: str
) -> None:
    rewards = RewardSet([NamedReward("sum", code_points)], 60)
    settings = GrpoSettings(num_prompts=2, num_generations=4, steps=3)
    loops = [Grpo(policy(), PROMPTS, rewards, PolicyLoss(), settings) for _ in range(2)]
    for loop in loops:
        loop.update()
    with monkeypatch.context() as patch:
        patch.setattr(SharedEngine, method, fill_memory)
        with pytest.raises(OutOfMemory, match=message):
            loops[0].update()
    assert loops[0].counters() == loops[1].counters()
    folder = checkpoint.save(tmp_path, loops[0], loops[0].policy)
    again = Grpo(policy(), PROMPTS, rewards, PolicyLoss(), settings)
    checkpoint.restore(folder, again, again.policy)
    metrics = [loop.update().metrics for loop in (loops[0], again, loops[1])]
    for name in ("reward", "loss", "grad_norm", "num_tokens"):
        assert metrics[0][name] == metrics[1][name] == metrics[2][name]


def test_a_supervised_step_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Sft(policy(), [Example(p, "x") for p in PROMPTS], SftSettings(batch_size=4))
    monkeypatch.setattr(SharedEngine, "score", fill_memory)
    message = (
        r"learning from examples.*Raise sft\.gradient_accumulation_steps \(1\), which divides sft\.batch_size \(4\)"
    )
    with pytest.raises(OutOfMemory, match=message):
        loop.update()
    assert loop.counters() == {"step": 0, "tokens": 0}


def test_a_run_without_memory_keeps_what_it_learnt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe = parse_recipe(
        {
            "name": "r", "out": str(tmp_path), "stage": "sft", "sft": {"steps": 3, "batch_size": 2},
            "policy": {"kind": "autoregressive", "model": "tiny:32x1", "max_completion_length": 3, "device": "cpu"},
            "task": {"kind": "digits", "length": 2, "train_size": 8, "held_out_size": 2},
        }
    )  # fmt: skip
    supervised, calls = AutoregressivePolicy.supervised_loss, []

    def third_time(self: Any, *arguments: Any) -> Any:
        calls.append(1)
        return fill_memory() if len(calls) == 3 else supervised(self, *arguments)

    monkeypatch.setattr(AutoregressivePolicy, "supervised_loss", third_time)
    message = r"r/1-sft: out of memory.*The newest complete checkpoint is step 2; the same command goes on"
    with pytest.raises(RelgradError, match=message):
        run_recipe(recipe)
    assert checkpoint.steps(tmp_path / "r" / "1-sft" / "checkpoints") == [2]
    run_recipe(recipe)
    assert checkpoint.steps(tmp_path / "r" / "1-sft" / "checkpoints") == [2, 3]
