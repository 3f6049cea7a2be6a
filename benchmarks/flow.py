"""(flow) A whole Flow-GRPO update of a small FS-DFM network, against one step of one trajectory at a time.

    mask, uniform   192 wide, 6 blocks (the size `small`), FS-DFM's vocabulary of 50,257, LoRA of rank 16 on the attention; one
                    prompt of 48 tokens x 4 completions of 48 tokens x 6 steps, all trained, from either source
    forms           the network of the recipe `forms-flow`: 48 wide, 2 blocks, 96 characters, all parameters, uniform source; 4
                    prompts of 70 x 8 completions of 76 x 4 steps

Float32, kernel `mixture`, AdamW, k3 to a frozen start. relgrad runs `Grpo.update()`; the peer is flow_stepwise.py. Where there is a
CUDA device, flow_large.py also measures the 1.3B network on it.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import Tensor

from benchmarks import flow_large, harness
from benchmarks import tables as shared
from benchmarks.flow_stepwise import MAX_GRAD_NORM, Step, Stepwise
from relgrad.core.errors import RelgradError
from relgrad.core.randomness import draw_epochs
from relgrad.core.ranks import ALONE, Ranks
from relgrad.core.types import Output, Prompt
from relgrad.laws.ctmc import Source
from relgrad.laws.schedule import Scheduler
from relgrad.networks.fsdfm import lora as fsdfm_lora
from relgrad.networks.fsdfm.network import DiT, DiTConfig
from relgrad.objectives.losses import PolicyLoss
from relgrad.policies import flow
from relgrad.policies.flow.open import Opened
from relgrad.policies.flow.settings import Lora
from relgrad.policies.flow.symbols import Symbols
from relgrad.rewards.combine import NamedReward, RewardSet
from relgrad.text.vocabulary import Vocabulary
from relgrad.training.grpo import Grpo, GrpoSettings
from relgrad.trajectories.states import unpack_states

TITLE = "(flow) a Flow-GRPO update of a small FS-DFM network, float32"
ARMS = ("relgrad", "stepwise")
PHASES = ("sample", "reward", "score", "backward", "optimizer", "rest")
BETA, LEARNING_RATE = 0.04, 1e-5
UPDATES, REPEATS = 2, 3
TOLERANCE = 1e-3
SPEED_TARGET = 4.0
MOVED = 0.01
FIRST_CHARACTER = 0x10000


class Job(NamedTuple):
    """What is trained, for both ways; a test makes it smaller."""

    num_prompts: int = 1
    num_generations: int = 4
    prompt: int = 48
    positions: int = 48
    steps: int = 6
    vocabulary: int = 50_256
    hidden: int = 192
    blocks: int = 6
    heads: int = 6
    cond_dim: int = 64
    source: Source = "uniform"
    lora: bool = True

    @property
    def characters(self) -> str:
        """As many as the vocabulary has; the end of sequence comes on top."""
        return "".join(map(chr, range(FIRST_CHARACTER, FIRST_CHARACTER + self.vocabulary)))

    def prompts(self) -> list[Prompt]:
        """16 prompts of random characters."""
        drawn = torch.randint(self.vocabulary, (16, self.prompt), generator=torch.Generator().manual_seed(0))
        return [Prompt("".join(self.characters[i] for i in row), id=n) for n, row in enumerate(drawn.tolist())]

    def policy(self) -> flow.FlowPolicy:
        """The network with random weights everywhere and its frozen start, on the CPU."""
        lora = Lora() if self.lora else None
        settings = flow.Settings(
            max_completion_length=self.positions, sampling_steps=self.steps, source=self.source, lora=lora, device="cpu"
        )
        symbols = Symbols(Vocabulary.of_text(self.characters), self.vocabulary, masked=self.source == "mask")
        length = self.prompt + self.positions
        sizes = {"hidden": self.hidden, "blocks": self.blocks, "heads": self.heads, "cond_dim": self.cond_dim}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = DiT(DiTConfig(vocab_size=symbols.size, length=length, **sizes))
            for parameter in model.parameters():
                if parameter.dim() > 1 and not parameter.any():
                    torch.nn.init.normal_(parameter, std=0.02)
            adapted = None
            if lora is not None:
                adapted = fsdfm_lora.add_lora(
                    model, r=lora.r, alpha=lora.alpha, dropout=lora.dropout, targets=lora.target_modules
                )
        policy = flow.FlowPolicy(Opened(model, symbols, Scheduler(), adapted, "benchmark"), settings)
        policy.freeze_reference()
        return policy


JOBS = {
    "mask": Job(source="mask"),
    "uniform": Job(),
    "forms": Job(
        num_prompts=4,
        num_generations=8,
        prompt=70,
        positions=76,
        steps=4,
        vocabulary=96,
        hidden=48,
        blocks=2,
        heads=4,
        cond_dim=32,
        lora=False,
    ),
}


def cheap(ids: Sequence[int]) -> float:
    """A number in [0, 1), different for different texts, so that no group is without spread."""
    return zlib.crc32(str(tuple(ids)).encode()) / 2**32


# ---------------------------------------------------------------------- two ways of one update


def relgrad_loop(job: Job, policy: flow.FlowPolicy, updates: int = 1, ranks: Ranks = ALONE) -> Grpo:
    """relgrad's own loop, as a recipe would build it."""
    settings = GrpoSettings(
        steps=updates,
        num_prompts=job.num_prompts,
        num_generations=job.num_generations,
        learning_rate=LEARNING_RATE,
        loss_type="reinforce",
        scale_rewards="none",
        beta=BETA,
        use_bias_correction_kl=False,
        max_grad_norm=MAX_GRAD_NORM,
    )
    shared_names = PolicyLoss.__dataclass_fields__.keys() & GrpoSettings.model_fields.keys()
    loss = PolicyLoss(**{name: getattr(settings, name) for name in shared_names})

    def reward(prompt: Prompt, outputs: Sequence[Output]) -> list[float]:
        return [cheap(output.ids) for output in outputs]

    rewards = RewardSet([NamedReward("cheap", reward)], 60)
    return Grpo(policy, job.prompts(), rewards, loss, settings, seed=0, ranks=ranks)


def stepwise(job: Job, policy: flow.FlowPolicy) -> Stepwise:
    """The peer, on the policy's network, with a copy of it as it is now for a reference."""
    excluded_V = torch.ones(policy.symbols.size, dtype=torch.bool).index_fill(0, policy.symbols.drawable_K, False)
    return Stepwise(
        policy.model, copy.deepcopy(policy.model), excluded_V,
        lambda written_GE: torch.tensor([cheap(ids) for ids in written_GE.tolist()]),
        mask_id=policy.symbols.mask_id, steps=job.steps, positions=job.positions, copies=job.num_generations, beta=BETA,
        learning_rate=LEARNING_RATE,
    )  # fmt: skip


def gate(job: Job) -> float:
    """The largest relative difference (in norm, over the parameters) between the two ways' gradients of one update.

    Same trajectories (relgrad's) and advantages, away from the reference. Raises RelgradError above TOLERANCE: nothing may be
    timed then.
    """
    policy = job.policy()
    peer = stepwise(job, policy)
    noise = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, parameter in policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=noise) * MOVED)
    loop = relgrad_loop(job, policy)
    ours: dict[str, Tensor] = {}

    def keep(step: int) -> dict[str, float]:
        ours.update({name: p.grad.clone() for name, p in policy.parameters() if p.grad is not None})
        return {}

    loop.optimizer.step = keep  # type: ignore[method-assign]
    loop.update()
    policy.model.zero_grad()
    assert loop.batch is not None
    (rollouts,) = (part.rollouts for part in loop.batch.parts)
    state_BTE = unpack_states(rollouts.trace, torch.arange(rollouts.rows))
    for row, group in enumerate(rollouts.group_B.tolist()):
        ids = policy.encode(rollouts.prompts[group])
        rows = [torch.tensor([[*ids, *state]]) for state in state_BTE[row].tolist()]
        for number, (before_1L, after_1L) in enumerate(itertools.pairwise(rows)):
            loss = peer.loss(Step(number, before_1L, after_1L), len(ids), float(loop.batch.advantage_B[row]))
            (loss / rollouts.rows).backward()
    return compare(ours, {name: p.grad for name, p in policy.parameters() if p.grad is not None})


def compare(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """The largest relative difference in norm over the parameters. Raises RelgradError above TOLERANCE."""
    if ours.keys() != theirs.keys():
        raise RelgradError(f"flow gate: gradients of different parameters: {sorted(ours.keys() ^ theirs.keys())}")
    gap = {name: float((ours[name] - theirs[name]).norm() / theirs[name].norm()) for name in theirs}
    worst = max(gap, key=lambda name: gap[name])
    if not gap[worst] <= TOLERANCE:
        raise RelgradError(
            f"flow gate: the gradients of {worst} differ by {gap[worst]:.1e} (allowed {TOLERANCE:.0e}); nothing is timed"
        )
    return gap[worst]


# ---------------------------------------------------------------------- measuring


def stepper(arm: str, job: Job, meter: harness.Meter, updates: int) -> Callable[[], None]:
    """One update per call, its phases clocked. Both ways take the same prompts in the same order."""
    policy = job.policy()
    if arm == "relgrad":
        loop = relgrad_loop(job, policy, updates)
        meter.wrap(policy, "sample", "sample")
        meter.wrap(loop.source, "rewards", "reward")
        meter.wrap(policy, "score", "score")
        meter.wrap(loop.optimizer, "step", "optimizer")
        return lambda: _checked(loop)
    peer = stepwise(job, policy)
    for name, phase in {"trajectory": "sample", "reward": "reward", "loss": "score", "apply": "optimizer"}.items():
        meter.wrap(peer, name, phase)
    drawn = iter(draw_epochs(job.prompts(), 0, updates * job.num_prompts, seed=0))
    return lambda: peer.update([policy.encode(next(drawn)) for _ in range(job.num_prompts)])


def _checked(loop: Grpo) -> None:
    """One update that left nothing out: no group without spread, every row rewarded."""
    metrics = loop.update().metrics
    if metrics["frac_reward_zero_std"] or metrics["rewards/unscored"]:
        raise AssertionError(f"groups without spread, or rows without reward: {metrics}")


def update_flops(arm: str, job: Job) -> int:
    """Matrix-product FLOPs (attention too) of one update of one way."""
    step = stepper(arm, job, harness.Meter(), 1)
    with harness.count_flops() as flops:
        step()
    return int(flops.get_total_flops())


def measure(arm: str, options: dict[str, Any]) -> dict[str, Any]:
    """Seconds per update and by phase, FLOPs, share of matmul speed, peak memory."""
    job, meter, timed = JOBS[options["job"]], harness.Meter(), options["updates"]
    meter.wrap(torch.autograd, "backward", "backward")
    step = stepper(arm, job, meter, 1 + timed)
    with harness.count_flops() as flops:  # the warm-up
        step()
    before = harness.matmul_speed()
    harness.reset_peak()
    meter.start()
    for _ in range(timed):
        step()
    found = meter.per_step(timed)
    after = harness.matmul_speed()
    speed = {key: (before[key] + after[key]) / 2 for key in before}
    found |= speed | {
        "gflop": flops.get_total_flops() / 1e9,
        "peak_mb": harness.peak_mb(),
        "torch_threads": torch.get_num_threads(),
    }
    return found | {"matmul_share": harness.matmul_share(found, torch.get_num_threads())}


def run(*, quick: bool, threads: Sequence[int], say: Callable[[str], None]) -> list[dict[str, Any]]:
    """The gate of every job, then both ways in turn; and the 1.3B network, where there is a device for it."""
    gaps = {name: gate(job) for name, job in JOBS.items()}
    say(f"gate: gradients of both ways differ by {max(gaps.values()):.1e} at most (allowed {TOLERANCE:.0e})")
    cases = [{"job": name, "updates": 1 if quick else UPDATES} for name in JOBS]
    records = harness.take_turns("flow", cases, threads=threads, repeats=1 if quick else REPEATS, say=say)
    records = [record | {"gate_relative_gap": gaps[record["job"]]} for record in records]
    return records + (flow_large.run(quick=quick, say=say) if torch.cuda.is_available() else [])


# ---------------------------------------------------------------------- tables


def tables(records: Sequence[dict[str, Any]]) -> list[Table]:
    """One table per number of threads and job, and one for the 1.3B network where it was measured."""
    small = [r for r in records if r["arm"] in ARMS]
    large = [r for r in records if r["arm"] in flow_large.ARMS]
    cases = sorted({(r["threads"], list(JOBS).index(r["job"])) for r in small})
    found = [_table(small, threads, list(JOBS)[number]) for threads, number in cases]
    return found + ([flow_large.table(large)] if large else [])


def _table(records: Sequence[dict[str, Any]], threads: int, job: str) -> Table:
    chosen = [r for r in records if (r["threads"], r["job"]) == (threads, job)]
    key = shared.clock(threads)
    unit = "process second" if key == "cpu_s" else "second"
    steps = JOBS[job].num_prompts * JOBS[job].num_generations * JOBS[job].steps
    table = Table(
        title=f"{job}, {shared.threads(threads)} (medians; ± is half the range; phases in {unit}s; an update trains {steps} steps; "
        f"target: {SPEED_TARGET:g} times as fast)"
    )
    head = ("", f"steps / {unit}", "±", "process s", "wall s", *PHASES, "GFLOP", "of matmul speed", "peak MB")
    for column in (*head, "FLOPs / relgrad", "sampling / relgrad", "time / relgrad"):
        table.add_column(column, justify="right")
    by_arm = {arm: [r for r in chosen if r["arm"] == arm] for arm in ARMS}
    for arm, rows in by_arm.items():
        table.add_row(
            arm,
            f"{steps / harness.median(rows, key):.1f}",
            f"{harness.spread(rows, key):.0%}",
            f"{harness.median(rows, 'cpu_s'):.3f}",
            f"{harness.median(rows, 'wall_s'):.3f}",
            *(f"{_phase(rows, key, phase):.3f}" for phase in PHASES),
            f"{harness.median(rows, 'gflop'):.1f}",
            f"{harness.median(rows, 'matmul_share'):.0%}",
            f"{harness.median(rows, 'peak_mb'):.0f}",
            *(("", "", "") if arm == "relgrad" else _ratios(by_arm["relgrad"], rows, key)),
        )
    return table


def _phase(rows: Sequence[Mapping[str, Any]], key: str, phase: str) -> float:
    return statistics.median(r[f"phases_{key}"].get(phase, 0.0) for r in rows)


def _ratios(own: Sequence[Mapping[str, Any]], peer: Sequence[Mapping[str, Any]], key: str) -> tuple[str, str, str]:
    """The peer over relgrad in FLOPs, in sampling time and in time, and whether the target is met."""
    flops, time = (harness.median(peer, what) / harness.median(own, what) for what in ("gflop", key))
    sampling = _phase(peer, key, "sample") / _phase(own, key, "sample")
    return f"{flops:.2f}", f"{sampling:.2f}", f"{time:.2f} {'met' if time >= SPEED_TARGET else 'missed'}"
