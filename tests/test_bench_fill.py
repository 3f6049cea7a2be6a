"""The benchmark `fill`: both ways are the same computation, and the FLOPs it counts are those on paper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import fill, harness, results_table
from benchmarks.fill_copies import Copies
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.randomness import draw_epochs
from relgrad.core.types import Output

JOB = fill.Job(num_prompts=2, num_generations=8, length=32, n_layer=2, n_head=2, n_embd=16)


def test_both_ways_give_one_gradient() -> None:
    assert fill.gate(JOB) <= fill.TOLERANCE


@pytest.mark.parametrize("fault", ["temperature", "one position too few"])
def test_the_gate_refuses_another_computation(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    right = Copies.row_logp

    def wrong(self: Copies, logits_BLV: Tensor, masked_BL: Tensor, filled_BL: Tensor) -> Tensor:
        if fault == "temperature":
            return right(self, logits_BLV / 0.99, masked_BL, filled_BL)
        masked_BL = masked_BL.clone()
        masked_BL[0, int((masked_BL[0] == self.vocabulary.mask_id).nonzero()[0])] = 0
        return right(self, logits_BLV, masked_BL, filled_BL)

    monkeypatch.setattr(Copies, "row_logp", wrong)
    with pytest.raises(RelgradError, match="nothing is timed"):
        fill.gate(JOB)


@pytest.mark.parametrize("arm", ["copies", "copies-split"])
def test_the_copies_cost_what_they_cost_on_paper(arm: str) -> None:
    """Forward, backward (twice the forward) and the reference's forward, of every copy and position.

    24 L H^2 + 4 L^2 H per layer and 2 L V H for the head; attention's backward counts 5 / 2, since it multiplies queries by keys
    again.
    """
    vocabulary = JOB.policy().model.config.vocab_size
    linear = JOB.n_layer * 24 * JOB.length * JOB.n_embd**2 + 2 * JOB.length * vocabulary * JOB.n_embd
    attention = JOB.n_layer * 4 * JOB.length**2 * JOB.n_embd
    row = (1 + 2 + 1) * linear + (2 + 5 / 2) * attention
    assert fill.generator_flops(arm, JOB) == JOB.num_prompts * JOB.num_generations * row


def test_relgrad_computes_a_prompt_once_whatever_its_number_of_completions() -> None:
    few, many = (fill.generator_flops("relgrad", JOB._replace(num_generations=k)) for k in (4, 8))
    assert few == many
    assert fill.generator_flops("copies", JOB) >= fill.FLOPS_TARGET * many


@pytest.mark.parametrize("arm", fill.ARMS)
def test_every_way_is_judged_on_the_same_prompts_in_the_same_order(arm: str) -> None:
    seen: list[Tensor] = []

    def score(masked_BL: Tensor, filled_BL: Tensor) -> Tensor:
        seen.append(masked_BL)
        return fill.cheap(masked_BL, filled_BL)

    step = fill.stepper(arm, JOB, fill.on_rows(score), harness.Meter(), steps=3)
    for _ in range(3):
        step()
    rows = draw_epochs(JOB.prompts(), 0, 3 * JOB.num_prompts, seed=0)
    expected_BL = torch.tensor([p.columns["masked_ids"] for p in rows]).repeat_interleave(JOB.num_generations, 0)
    assert torch.equal(torch.cat(seen), expected_BL)


def test_both_ways_hear_the_same_judge_who_tells_fills_apart() -> None:
    of_group, of_rows = JOB.reward("judge")
    prompt = JOB.prompts()[0]
    masked_BL = torch.tensor(prompt.columns["masked_ids"]).expand(6, -1)
    drawn_BL = torch.randint(100, masked_BL.shape, generator=torch.Generator().manual_seed(0))
    filled_BL = torch.where(masked_BL == JOB.policy().vocabulary.mask_id, drawn_BL, masked_BL)
    score_B = of_rows(masked_BL, filled_BL)
    scores = of_group(prompt, [Output("", tuple(ids)) for ids in filled_BL.tolist()])
    assert [score.value for score in scores] == pytest.approx(score_B.tolist())
    assert len(set(score_B.tolist())) == 6


def record(arm: str, cpu_s: float, gflop: float, repeat: int) -> dict[str, Any]:
    phases = dict.fromkeys(fill.PHASES, cpu_s / 6)
    return {
        "arm": arm, "threads": 1, "reward": "judge", "repeat": repeat, "cpu_s": cpu_s, "wall_s": 2 * cpu_s, "peak_mb": 400.0,
        "phases_cpu_s": phases, "phases_wall_s": phases, "generator_gflop": gflop,
    }  # fmt: skip


def test_a_results_file_becomes_a_markdown_table_with_the_ratios(tmp_path: Path) -> None:
    times = {"relgrad": (0.1, 0.2, 0.4), "copies": (0.8, 0.7, 0.9), "copies-split": (0.3, 0.3, 0.3)}
    gflop = {"relgrad": 5.0, "copies": 20.0, "copies-split": 19.0}
    records = [record(arm, s, gflop[arm], i) for arm, found in times.items() for i, s in enumerate(found)]
    file = tmp_path / "x-fill.json"
    file.write_text(
        json.dumps({"benchmark": "fill", "hardware": {"cpu": "a computer", "memory": "1 GiB"}, "records": records})
    )
    lines = results_table.of_benchmark(file).splitlines()
    rows = {
        cells[1].strip(): [c.strip() for c in cells] for cells in (line.split("|") for line in lines) if len(cells) > 3
    }
    assert rows["relgrad"][2:6] == ["5.00", "75%", "0.200", "0.400"]
    assert rows["copies"][-3:-1] == ["4.00 met", "4.00 met"]
    assert rows["copies-split"][-3:-1] == ["3.80 missed", "1.50 missed"]
    assert lines[-1] == "a computer, 1 GiB"
