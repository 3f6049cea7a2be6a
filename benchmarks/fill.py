"""(fill) A whole GRPO step of the fill-in diffusion GPT, once per prompt, against the seeds' way: once per copy.

4 prompts of 128 characters, 30 % of them masked, x 8 completions; default sizes of policies/fill_in (1 M parameters), float32,
temperature 1, AdamW, divergence from a frozen start. relgrad runs `Grpo.update()` with the exact KL; the peer is
fill_copies.py, with its k1: `copies` takes all 32 rows at once, `copies-split` one prompt's 8 rows at a time.

Two cases: a reward that costs next to nothing, and a judge of the generator's size that scores all 32 completions. The
generator's FLOPs are counted in a step with the cheap reward, so the judge's are not among them.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import Tensor

from benchmarks import harness
from benchmarks import tables as shared
from benchmarks.fill_copies import Copies, ScoreRows
from relgrad.core.errors import RelgradError
from relgrad.core.protocols import Reward
from relgrad.core.randomness import draw_epochs
from relgrad.core.ranks import ALONE, Ranks
from relgrad.core.types import Output, Prompt
from relgrad.judges.network import Judge, Refilled
from relgrad.networks.diffusion_gpt.network import GPT, GPTConfig
from relgrad.objectives.losses import PolicyLoss
from relgrad.policies import fill_in
from relgrad.rewards import judge as judge_reward
from relgrad.rewards.combine import NamedReward, RewardSet
from relgrad.tasks import masked_text
from relgrad.text.masking import Random
from relgrad.training.grpo import Grpo, GrpoSettings

TITLE = "(fill) diffusion GPT, 1.0 M parameters, 4 prompts x 128 characters (30 % masked) x 8 completions, float32"
ARMS = ("relgrad", "copies", "copies-split")
REWARDS = ("cheap", "judge")
PHASES = ("sample", "reward", "score", "backward", "optimizer", "rest")
MASKED, BETA, LEARNING_RATE = 0.3, 0.1, 1e-4
WARM_UP, STEPS, REPEATS = 2, 10, 3
TOLERANCE = 1e-4
FLOPS_TARGET, SPEED_TARGET = 4.0, 2.0


class Job(NamedTuple):
    """What is trained, for both ways; a test makes it smaller."""

    num_prompts: int = 4
    num_generations: int = 8
    length: int = 128
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 144

    def prompts(self) -> Sequence[Prompt]:
        """Windows of the built-in text (no padding), every position masked with probability MASKED."""
        stage = Random(min_masked_ratio=MASKED, max_masked_ratio=MASKED)
        settings = masked_text.Settings(length=self.length, aligned="window", stages=(stage,), held_out_size=0)
        return masked_text.load(settings, seed=0).train

    def policy(self, **options: Any) -> fill_in.FillInPolicy:
        """The generator with its frozen start, on the CPU."""
        settings = fill_in.Settings(
            block_size=self.length,
            n_layer=self.n_layer,
            n_head=self.n_head,
            n_embd=self.n_embd,
            device="cpu",
            **options,
        )
        return fill_in.build(settings, seed=0, reference=True)

    def reward(self, kind: str) -> Rewarded:
        """The reward of one case."""
        return on_rows(cheap) if kind == "cheap" else judged(self)


# ---------------------------------------------------------------------- rewards


class Rewarded(NamedTuple):
    """One reward in two forms: as relgrad calls it, group by group, and on the rows of a micro-batch at once."""

    of_group: Reward
    of_rows: ScoreRows


def cheap(masked_BL: Tensor, filled_BL: Tensor) -> Tensor:
    """A number in [0, 1) per row, different for different fills, so that no group is without spread."""
    return torch.tensor([zlib.crc32(bytes(ids)) / 2**32 for ids in filled_BL.tolist()])


def on_rows(score: ScoreRows) -> Rewarded:
    """A function of tensors as a reward."""

    def reward(prompt: Prompt, outputs: Sequence[Output]) -> list[float]:
        filled_BL = torch.tensor([output.ids for output in outputs])
        masked_BL = torch.tensor(prompt.columns["masked_ids"]).expand_as(filled_BL)
        return score(masked_BL, filled_BL).tolist()

    return Rewarded(reward, score)


def judged(job: Job) -> Rewarded:
    """A judge of positions of the generator's size, with random weights: a recipe's judge reward, and the judge itself."""
    policy = job.policy()
    shape = policy.model.config.model_dump() | {"mode": "token_classifier", "num_token_classes": 1, "marks": True}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        judge = Judge(GPT(GPTConfig(**shape)), policy.vocabulary)

    def score(masked_BL: Tensor, filled_BL: Tensor) -> Tensor:
        refilled_BL = masked_BL == policy.vocabulary.mask_id
        nothing_BL = torch.zeros_like(refilled_BL)
        return judge.scores(Refilled(filled_BL, ~nothing_BL, refilled_BL, nothing_BL))[0]

    return Rewarded(judge_reward.JudgeReward([judge], judge_reward.Settings(judges=("benchmark",))), score)


# ---------------------------------------------------------------------- two ways of one step


def relgrad_loop(
    job: Job, reward: Reward, policy: fill_in.FillInPolicy | None = None, *, ranks: Ranks = ALONE, **options: Any
) -> Grpo:
    """relgrad's own loop, as a recipe would build it; `options` go to GrpoSettings."""
    options = {"beta": BETA, "kl_estimator": "exact", "learning_rate": LEARNING_RATE, "max_grad_norm": 1.0} | options
    settings = GrpoSettings(num_prompts=job.num_prompts, num_generations=job.num_generations, **options)
    shared_names = PolicyLoss.__dataclass_fields__.keys() & GrpoSettings.model_fields.keys()
    loss = PolicyLoss(**{name: getattr(settings, name) for name in shared_names})
    rewards = RewardSet([NamedReward("reward", reward)], settings.reward_timeout)
    return Grpo(policy or job.policy(), job.prompts(), rewards, loss, settings, seed=0, ranks=ranks)


def copies_step(job: Job, score: ScoreRows, *, beta: float = BETA, split: bool = False) -> Copies:
    """The peer, from the same weights."""
    policy = job.policy()
    at_once = 1 if split else job.num_prompts
    return Copies(
        policy.model, copy.deepcopy(policy.model), policy.vocabulary, score,
        copies=job.num_generations, prompts_at_once=at_once, beta=beta, learning_rate=LEARNING_RATE,
    )  # fmt: skip


def gate(job: Job) -> float:
    """The largest relative difference (in norm, over the parameters) between the two ways' gradients of one step.

    Same fills (relgrad's), same advantages (reward minus the group's mean), no divergence, temperature 1 over all ids, every
    row the sum of its decisions. Raises RelgradError above TOLERANCE: nothing may be timed then.
    """
    rows: list[tuple[Tensor, Tensor]] = []

    def recorded(masked_BL: Tensor, filled_BL: Tensor) -> Tensor:
        rows.append((masked_BL, filled_BL))
        return cheap(masked_BL, filled_BL)

    policy = job.policy(scoring="untempered")
    plain = {"beta": 0.0, "kl_estimator": "k3", "loss_type": "reinforce", "scale_rewards": "none"}
    loop = relgrad_loop(job, on_rows(recorded).of_group, policy, **plain)
    ours: dict[str, Tensor] = {}
    loop.optimizer.step = lambda step: ours.update(gradients(policy.model)) or {}
    loop.update()
    masked_BL, filled_BL = (torch.cat(part) for part in zip(*rows, strict=True))
    peer = copies_step(job, cheap, beta=0.0)
    group_GK = cheap(masked_BL, filled_BL).view(job.num_prompts, -1)
    advantage_B = (group_GK - group_GK.mean(-1, keepdim=True)).flatten()
    peer.loss(peer.logits(peer.model, masked_BL), masked_BL, filled_BL, advantage_B).backward()
    return compare(ours, gradients(peer.model))


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    """The gradient of every parameter, copied."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def compare(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """The largest relative difference in norm over the parameters. Raises RelgradError above TOLERANCE."""
    if ours.keys() != theirs.keys():
        raise RelgradError(f"fill gate: gradients of different parameters: {sorted(ours.keys() ^ theirs.keys())}")
    gap = {name: float((ours[name] - theirs[name]).norm() / theirs[name].norm()) for name in theirs}
    worst = max(gap, key=lambda name: gap[name])
    if not gap[worst] <= TOLERANCE:
        raise RelgradError(
            f"fill gate: the gradients of {worst} differ by {gap[worst]:.1e} (allowed {TOLERANCE:.0e}); nothing is timed"
        )
    return gap[worst]


# ---------------------------------------------------------------------- measuring


def stepper(arm: str, job: Job, reward: Rewarded, meter: harness.Meter, steps: int) -> Callable[[], None]:
    """One optimizer step per call, its phases clocked. Both ways take the same prompts in the same order."""
    if arm == "relgrad":
        loop = relgrad_loop(job, reward.of_group, steps=steps)
        meter.wrap(loop.policy, "sample", "sample")
        meter.wrap(loop.source, "rewards", "reward")
        meter.wrap(loop.policy, "score", "score")
        meter.wrap(loop.optimizer, "step", "optimizer")
        return lambda: _checked(loop)
    peer = copies_step(job, reward.of_rows, split=arm == "copies-split")
    for name, phase in {"sample": "sample", "reward": "reward", "loss": "score", "apply": "optimizer"}.items():
        meter.wrap(peer, name, phase)
    drawn = iter(draw_epochs(job.prompts(), 0, steps * job.num_prompts, seed=0))
    return lambda: peer.update([next(drawn) for _ in range(job.num_prompts)])


def _checked(loop: Grpo) -> None:
    """One update that left nothing out: no group without spread, every row rewarded."""
    metrics = loop.update().metrics
    if metrics["frac_reward_zero_std"] or metrics["rewards/unscored"]:
        raise AssertionError(f"groups without spread, or rows without reward: {metrics}")


def generator_flops(arm: str, job: Job) -> int:
    """Matrix-product FLOPs (attention too) of one step of one way, with the cheap reward."""
    step = stepper(arm, job, on_rows(cheap), harness.Meter(), 1)
    with harness.count_flops() as flops:
        step()
    return int(flops.get_total_flops())


def measure(arm: str, options: dict[str, Any]) -> dict[str, Any]:
    """Seconds per step and by phase, generator FLOPs per step, peak memory."""
    job, meter, timed = Job(), harness.Meter(), options["steps"]
    meter.wrap(torch.autograd, "backward", "backward")
    flops = generator_flops(arm, job)
    step = stepper(arm, job, job.reward(options["reward"]), meter, WARM_UP + timed)
    for _ in range(WARM_UP):
        step()
    harness.reset_peak()
    meter.start()
    for _ in range(timed):
        step()
    found = meter.per_step(timed)
    return found | {
        "generator_gflop": flops / 1e9,
        "peak_mb": harness.peak_mb(),
        "torch_threads": torch.get_num_threads(),
    }


def run(*, quick: bool, threads: Sequence[int], say: Callable[[str], None]) -> list[dict[str, Any]]:
    """The gate, then both ways in turn."""
    gap = gate(Job())
    say(f"gate: gradients of both ways differ by {gap:.1e} at most (allowed {TOLERANCE:.0e})")
    cases = [{"reward": reward, "steps": 3 if quick else STEPS} for reward in REWARDS]
    records = harness.take_turns("fill", cases, threads=threads, repeats=1 if quick else REPEATS, say=say)
    return [record | {"gate_relative_gap": gap} for record in records]


# ---------------------------------------------------------------------- tables


def tables(records: Sequence[dict[str, Any]]) -> list[Table]:
    """One table per number of threads and reward."""
    cases = sorted({(r["threads"], REWARDS.index(r["reward"])) for r in records})
    return [_table(records, threads, REWARDS[number]) for threads, number in cases]


def _table(records: Sequence[dict[str, Any]], threads: int, reward: str) -> Table:
    chosen = [r for r in records if (r["threads"], r["reward"]) == (threads, reward)]
    key = shared.clock(threads)
    unit = "process second" if key == "cpu_s" else "second"
    table = Table(
        title=f"{reward} reward, {shared.threads(threads)} (medians; ± is half the range; phases in {unit}s; targets: "
        f"{FLOPS_TARGET:g} times fewer generator FLOPs, {SPEED_TARGET:g} times the steps)"
    )
    head = ("", f"steps / {unit}", "±", "process s", "wall s", *PHASES, "GFLOP", "peak MB")
    for column in (*head, "FLOPs / relgrad", "time / relgrad"):
        table.add_column(column, justify="right")
    by_arm = {arm: [r for r in chosen if r["arm"] == arm] for arm in ARMS}
    for arm, rows in by_arm.items():
        phases = (sorted(r[f"phases_{key}"].get(phase, 0.0) for r in rows)[len(rows) // 2] for phase in PHASES)
        table.add_row(
            arm,
            f"{1 / harness.median(rows, key):.2f}",
            f"{harness.spread(rows, key):.0%}",
            f"{harness.median(rows, 'cpu_s'):.3f}",
            f"{harness.median(rows, 'wall_s'):.3f}",
            *(f"{value:.3f}" for value in phases),
            f"{harness.median(rows, 'generator_gflop'):.2f}",
            f"{harness.median(rows, 'peak_mb'):.0f}",
            *(("", "") if arm == "relgrad" else _ratios(by_arm["relgrad"], rows, key)),
        )
    return table


def _ratios(own: Sequence[Mapping[str, Any]], peer: Sequence[Mapping[str, Any]], key: str) -> tuple[str, str]:
    """The peer over relgrad in generator FLOPs and in time, and whether the target is met."""
    found = []
    for what, target in (("generator_gflop", FLOPS_TARGET), (key, SPEED_TARGET)):
        ratio = harness.median(peer, what) / harness.median(own, what)
        found.append(f"{ratio:.2f} {'met' if ratio >= target else 'missed'}")
    return found[0], found[1]
