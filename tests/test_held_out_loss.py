"""The held-out loss of supervised stages: the plain likelihood of validation targets, without dropout."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fill_prompts
from commands import lines, relgrad
from relgrad.core.protocols import KnowsTargets
from relgrad.core.ranks import Ranks
from relgrad.core.types import Example, Prompt
from relgrad.evaluation.likelihood import mean_nll
from relgrad.monitor.report.charts import stage_charts
from relgrad.policies import autoregressive

DIGITS = [Example(Prompt(f"{n}=", id=n), "1" * n) for n in range(1, 6)]
FILLED = [Example(prompt, "") for prompt in fill_prompts.PROMPTS]


def language_model(dropout: float) -> Any:
    lora = autoregressive.Lora(r=2, alpha=4, dropout=dropout)
    settings = autoregressive.Settings(model="tiny:32x1", max_completion_length=6, lora=lora)
    return autoregressive.build(settings, seed=0)


def fill_in(dropout: float) -> Any:
    return fill_prompts.policy(dropout=dropout, label_smoothing=dropout / 5)


def moved(policy: Any) -> Any:
    """Away from a fresh adapter, whose dropout changes nothing; the same way everywhere."""
    for _, parameter in policy.parameters():
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            parameter += 0.1 * noise
    return policy


@pytest.mark.parametrize(("build", "examples"), [(language_model, DIGITS), (fill_in, FILLED)])
def test_it_is_the_training_loss_without_dropout_and_smoothing(build: Any, examples: Sequence[Example]):
    policy, plain = moved(build(0.5)), moved(build(0.0))
    assert isinstance(policy, KnowsTargets)
    nll, targets = policy.target_nll(examples)
    parts = [policy.target_nll(examples[:2]), policy.target_nll(examples[2:])]
    assert nll == policy.target_nll(examples)[0], "nothing is drawn"
    assert targets == sum(count for _, count in parts)
    assert nll == pytest.approx(sum(total for total, _ in parts), rel=1e-5)
    learnt, noisy = (p.supervised_loss(examples, torch.Generator().manual_seed(0)) for p in (plain, policy))
    assert (learnt.targets, noisy.targets) == (targets, targets)
    assert learnt.nll == pytest.approx(nll, rel=1e-5)
    assert noisy.nll != pytest.approx(nll, rel=1e-4), "dropout acts in training"


class One:
    """Every target costs as many nats as its text has characters."""

    def target_nll(self, examples: Sequence[Example]) -> tuple[float, int]:
        assert len(examples) <= 2
        return float(sum(len(e.target) for e in examples)), len(examples)


class Second(Ranks):
    """The second of two processes; what the first one adds is known."""

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor + torch.tensor([3.0, 2.0], dtype=torch.float64)


def test_mean_over_all_targets_and_processes():
    assert mean_nll(One(), DIGITS, 2) == 3.0
    assert mean_nll(One(), DIGITS, 2, Second(1, 2)) == (3 + 4 + 5 + 3) / 5
    assert math.isnan(mean_nll(One(), [], 2))


def test_a_stage_logs_it_with_its_evaluations_and_at_its_end(tmp_path: Path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        json.dumps(
            {
                "name": "r",
                "stage": "sft",
                "sft": {"steps": 5, "batch_size": 4, "learning_rate": 0.01},
                "policy": {"kind": "autoregressive", "model": "tiny:32x1", "max_completion_length": 3},
                "task": {"kind": "digits", "length": 2, "train_size": 20, "held_out_size": 6, "test_size": 0},
                "evaluation": {"every": 2, "num_prompts": 5},
            }
        )
    )
    said = relgrad("run", recipe, f"out={tmp_path}")
    records = lines(tmp_path / "r" / "1-sft" / "metrics.jsonl")
    measured = {r["step"]: r["eval_loss"] for r in records if "eval_loss" in r}
    assert list(measured) == [2, 4, 5]
    assert measured[5] < measured[2] < math.log(100)
    assert "validation loss" in said
    charts, _, _ = stage_charts(records, {"stage": "sft"})
    (chart,) = [chart for chart in charts if chart.id == "nll"]
    assert [(series.name, series.x) for series in chart.series] == [
        ("training", [1, 2, 3, 4, 5]),
        ("validation", [2, 4, 5]),
    ]
