"""The benchmark `flow`: both ways are the same computation, and the FLOPs it counts are those on paper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import flow, flow_large, harness, results_table
from benchmarks.flow_stepwise import Step, Stepwise
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.randomness import draw_epochs
from relgrad.core.types import Prompt
from relgrad.policies.flow.policy import FlowPolicy

JOB = flow.Job(
    num_generations=3,
    prompt=7,
    positions=5,
    steps=4,
    vocabulary=30,
    hidden=16,
    blocks=2,
    heads=2,
    cond_dim=8,
    lora=False,
)
KINDS = {"uniform": JOB, "mask": JOB._replace(source="mask"), "lora": JOB._replace(lora=True, num_prompts=2)}


@pytest.mark.parametrize("job", KINDS.values(), ids=KINDS)
def test_both_ways_give_one_gradient(job: flow.Job) -> None:
    assert flow.gate(job) <= flow.TOLERANCE


@pytest.mark.parametrize("fault", ["temperature", "the prompt counts", "no reference"])
def test_the_gate_refuses_another_computation(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    right, probabilities = Stepwise.logp, Stepwise.probabilities

    def wrong(self: Stepwise, network: Any, step: Step, prompt: int) -> Tensor:
        if fault == "no reference" and network is self.reference:
            network = self.model
        return right(self, network, step, 0 if fault == "the prompt counts" else prompt)

    def warmer(self: Stepwise, network: Any, x_1L: Tensor, number: int) -> Tensor:
        p_LV = probabilities(self, network, x_1L, number) ** 0.98
        return p_LV / p_LV.sum(-1, keepdim=True)

    monkeypatch.setattr(Stepwise, "logp", wrong)
    if fault == "temperature":
        monkeypatch.setattr(Stepwise, "probabilities", warmer)
    with pytest.raises(RelgradError, match="nothing is timed"):
        flow.gate(JOB)


def on_paper(job: flow.Job, read: int) -> int:
    """FLOPs of an update from a uniform source, with logits at `read` positions of a row.

    Per step of a rollout: forward to sample, for the reference and to score; and backward, twice the forward. A row of L
    positions: 24 L H^2 + 4 L^2 H + 12 C H per block, 2 (256 C + C^2) for the time, 4 C H + 2 read V H for the head. Attention's
    backward counts 5 / 2; the sinusoids of the time need no gradient.
    """
    length, h, c, v = job.prompt + job.positions, job.hidden, job.cond_dim, job.policy().symbols.size
    attention, sinusoids = job.blocks * 4 * length**2 * h, 2 * 256 * c
    linear = job.blocks * (24 * length * h**2 + 12 * c * h) + 2 * c**2 + 4 * c * h + 2 * read * v * h
    cell = 3 * (linear + attention + sinusoids) + 2 * linear + attention * 5 // 2 + sinusoids
    return job.num_prompts * job.num_generations * job.steps * cell


def test_the_flops_are_those_on_paper() -> None:
    """One goes step by step with logits everywhere, the other computes them only where something may be written."""
    assert flow.update_flops("stepwise", JOB) == on_paper(JOB, read=JOB.prompt + JOB.positions)
    assert flow.update_flops("relgrad", JOB) == on_paper(JOB, read=JOB.positions)


def test_from_a_mask_few_logits_are_computed() -> None:
    heavy = JOB._replace(vocabulary=3000, source="mask")
    ours, theirs = (flow.update_flops(arm, heavy) for arm in flow.ARMS)
    assert ours < 0.8 * theirs * heavy.positions / (heavy.prompt + heavy.positions)


def test_both_ways_take_the_same_prompts_in_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[list[int]]] = {arm: [] for arm in flow.ARMS}
    sample, trajectory = FlowPolicy.sample, Stepwise.trajectory

    def watch_sample(self: FlowPolicy, prompts: list[Prompt], group_size: int, generator: torch.Generator) -> Any:
        seen["relgrad"] += [self.encode(p) for p in prompts for _ in range(group_size)]
        return sample(self, prompts, group_size, generator)

    def watch_trajectory(self: Stepwise, ids: list[int]) -> Any:
        seen["stepwise"].append(list(ids))
        return trajectory(self, ids)

    monkeypatch.setattr(FlowPolicy, "sample", watch_sample)
    monkeypatch.setattr(Stepwise, "trajectory", watch_trajectory)
    job = KINDS["lora"]
    for arm in flow.ARMS:
        step = flow.stepper(arm, job, harness.Meter(), updates=2)
        step()
        step()
    policy = job.policy()
    rows = draw_epochs(job.prompts(), 0, 2 * job.num_prompts, seed=0)
    assert seen["relgrad"] == seen["stepwise"] == [policy.encode(p) for p in rows for _ in range(job.num_generations)]
    assert all(len(ids) == job.prompt for ids in seen["relgrad"])


@pytest.mark.parametrize("source", ["uniform", "mask"])
def test_both_ways_write_by_one_law(source: Any) -> None:
    """The mean number of jumps at every step."""
    job = JOB._replace(source=source, num_generations=150, positions=8)
    policy = job.policy()
    peer = flow.stepwise(job, policy)
    ids = policy.encode(job.prompts()[0])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trajectories = [peer.trajectory(ids) for _ in range(job.num_generations)]
    theirs = [
        sum(int((t[k].before_1L != t[k].after_1L).sum()) for t in trajectories) / len(trajectories)
        for k in range(job.steps)
    ]
    rollouts = policy.sample(job.prompts()[:1], job.num_generations, torch.Generator().manual_seed(0))
    count_BT = rollouts.trace["jump_offset"].diff().view(job.num_generations, job.steps)
    assert theirs == pytest.approx(count_BT.double().mean(0).tolist(), abs=0.5)


# ---------------------------------------------------------------------- the large network, made small

LARGE = flow_large.Large(
    vocabulary=40, prompt=9, positions=6, rows=5, device="cpu", policy=(("model", "tiny"), ("sampling_steps", 3))
)


def test_the_large_network_is_the_recipes() -> None:
    policy = flow_large.policy(LARGE)
    assert policy.symbols.size == 40
    assert (policy.symbols.end_id, policy.settings.lora.r, policy.model.checkpointing) == (39, 16, True)
    assert policy.model.output_layer.linear.weight.dtype == torch.bfloat16
    assert {p.dtype for _, p in policy.parameters()} == {torch.float32}
    assert all(bool(p.any()) for p in policy.model.parameters()), "no layer is still zero"
    assert [len(policy.encode(p)) for p in flow_large.prompts(LARGE)] == [9] * 32


def test_the_large_networks_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_large, "matmul_speed", lambda device: 100.0)
    found = {arm: flow_large.measured(arm, LARGE, repeats=1) | {"arm": arm} for arm in flow_large.ARMS}
    assert [found[arm]["rows"] for arm in flow_large.ARMS] == [5, 4]
    assert [found[arm]["trained_steps"] for arm in flow_large.ARMS] == [0, 12]
    assert found["sample"]["network_tokens"] == 5 * 3 * 15
    assert found["sample"]["written_tokens"] == 5 * 6
    for figures in found.values():
        assert figures["matmul_share"] == pytest.approx(figures["gflop"] / figures["seconds"] / 100)
    per_row_step = found["sample"]["gflop"] / 15
    assert found["update"]["gflop"] > 12 * 5 * per_row_step, "sampling, reference, scoring, and all of it again"
    rows = list(zip(*(column.cells for column in flow_large.table(list(found.values())).columns), strict=True))
    assert rows[0][5] == f"{15 / found['sample']['seconds']:,.1f}"
    assert rows[1][-1].endswith("met")


# ---------------------------------------------------------------------- the table


def record(arm: str, cpu_s: float, gflop: float, repeat: int) -> dict[str, Any]:
    phases = dict.fromkeys(flow.PHASES, cpu_s / 6)
    return {
        "arm": arm, "threads": 1, "job": "mask", "repeat": repeat, "cpu_s": cpu_s, "wall_s": 2 * cpu_s, "peak_mb": 400.0,
        "phases_cpu_s": phases, "phases_wall_s": phases, "gflop": gflop, "matmul_share": 0.5,
    }  # fmt: skip


def test_a_results_file_becomes_a_markdown_table_with_the_ratios(tmp_path: Path) -> None:
    times = {"relgrad": (0.1, 0.2, 0.4), "stepwise": (0.9, 0.8, 0.7)}
    gflop = {"relgrad": 5.0, "stepwise": 25.0}
    records = [record(arm, s, gflop[arm], i) for arm, found in times.items() for i, s in enumerate(found)]
    file = tmp_path / "x-flow.json"
    file.write_text(
        json.dumps({"benchmark": "flow", "hardware": {"cpu": "a computer", "memory": "1 GiB"}, "records": records})
    )
    lines = results_table.of_benchmark(file).splitlines()
    rows = {
        cells[1].strip(): [c.strip() for c in cells] for cells in (line.split("|") for line in lines) if len(cells) > 3
    }
    assert rows["relgrad"][2:6] == ["120.0", "75%", "0.200", "0.400"]
    assert rows["stepwise"][-4:-1] == ["5.00", "4.00", "4.00 met"]
    assert lines[-1] == "a computer, 1 GiB"
