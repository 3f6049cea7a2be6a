"""The policy contract: eleven statements about any policy, checked on the toys it offers. No policy is named here.

Each check takes a fresh toy and raises AssertionError with what it found.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from scipy.stats import chi2
from torch import Tensor

import forked
from enumerated import (
    close,
    enumeration,
    expected_reward,
    flat_gradient,
    move,
    nudge,
    rewards_of,
    row_logp,
    row_sums,
    seeded,
)
from relgrad.core.errors import RelgradError
from relgrad.core.protocols import Toy
from relgrad.core.randomness import Draws
from relgrad.core.types import Prompt, RewardTable, Rollouts

DRAWS = 20_000
BATCH = 1_000  # rows per call while drawing many
BATCHES = 32  # of BATCH / 4 rows each, for the gradient estimate
FRESH_PROCESS = Path(__file__).with_name("fresh_process.py")


def check_parity(toy: Toy) -> None:
    """1. `score` of fresh rollouts is what `sample` recorded; and the rollouts are well formed."""
    for _ in range(2):  # at the start, then with moved parameters
        rollouts = toy.policy.sample(toy.prompts, 8, seeded(1))
        cells_N2 = rollouts.cells()
        logp_N = toy.policy.score(rollouts, cells_N2).logp_N
        assert logp_N.dtype == torch.float32, f"log-probabilities are {logp_N.dtype}, not float32"
        assert logp_N.requires_grad, "log-probabilities are not differentiable"
        close(logp_N.detach().cpu(), rollouts.behaviour_logp_BT[rollouts.mask_BT], 1e-5, "fresh and recorded log-probs")
        assert rollouts.group_B.tolist() == [g for g in range(len(toy.prompts)) for _ in range(8)], (
            "rows are not grouped"
        )
        assert not rollouts.behaviour_logp_BT[~rollouts.mask_BT].any(), "behaviour_logp is not 0 outside the mask"
        assert bool((rollouts.size_BT >= 0).all()), "a decision of negative size"
        length_B = (rollouts.size_BT * rollouts.mask_BT).sum(-1)
        assert bool((length_B[rollouts.mask_BT.any(-1)] >= 1).all()), "a row of decisions without elementary choices"
        assert rollouts.mask_BT.shape[1] <= toy.policy.max_decisions, "more decisions than max_decisions"
        assert rollouts.policy_version == toy.policy.version, "policy_version is not the policy's"
        move(toy.policy)


def check_mass(toy: Toy) -> None:
    """2. The probabilities of all trajectories sum to 1."""
    move(toy.policy)
    for prompt in toy.prompts:
        mass = float(enumeration(toy, prompt).logp_B.exp().sum())
        assert abs(mass - 1) <= 1e-6, f"the trajectories of {prompt.text!r} have mass {mass:.8f}"


def check_terms(toy: Toy) -> None:
    """2b. Entropy and exact KL obey the chain rule: their expected sums along a row are those of the trajectories.

    E[sum_t H_t] = -sum P log P and E[sum_t KL_t] = sum P (log P - log P_ref), over the enumerated trajectories.
    """
    move(toy.policy)
    with torch.no_grad():
        for prompt in toy.prompts:
            everything = enumeration(toy, prompt)
            rollouts, cells_N2 = everything.rollouts, everything.rollouts.cells()
            p_B, logp_B = everything.logp_B.exp(), everything.logp_B
            scores = toy.policy.score(rollouts, cells_N2, entropy=True, reference_kl=True)
            assert scores.entropy_N is not None, "entropy was asked for and is None"
            assert scores.kl_N is not None, "reference_kl was asked for and is None"
            with toy.policy.reference():
                start_B = row_logp(toy.policy, rollouts).cpu()
            entropy = float((p_B * row_sums(rollouts, scores.entropy_N, cells_N2)).sum())
            kl = float((p_B * row_sums(rollouts, scores.kl_N, cells_N2)).sum())
            exact_entropy, exact_kl = float(-(p_B * logp_B).sum()), float((p_B * (logp_B - start_B)).sum())
            assert abs(entropy - exact_entropy) <= 1e-5, f"entropy {entropy:.6f}, by enumeration {exact_entropy:.6f}"
            assert abs(kl - exact_kl) <= 1e-5, f"KL {kl:.6f}, by enumeration {exact_kl:.6f}"
            assert exact_kl > 1e-6, "the moved policy equals its reference; the KL is not tested"


def check_frequency(toy: Toy) -> None:
    """3. 20,000 samples follow the enumerated probabilities (chi-square; cells expected below 5 are merged)."""
    move(toy.policy)
    each = DRAWS // len(toy.prompts)
    known = [enumeration(toy, prompt) for prompt in toy.prompts]
    observed = [Counter[Hashable]() for _ in known]
    generator, per_call = seeded(2), max(BATCH // len(toy.prompts), 1)
    for start in range(0, each, per_call):
        rollouts = toy.policy.sample(toy.prompts, min(per_call, each - start), generator)
        for key, group in zip(toy.keys(rollouts), rollouts.group_B.tolist(), strict=True):
            assert key in known[group].row, f"sampled {key!r}, which the enumeration does not have"
            observed[group][key] += 1
    statistic, freedom = 0.0, 0
    for counts, e in zip(observed, known, strict=True):
        count_B = torch.tensor([counts[key] for key in e.row], dtype=torch.float64)
        expected_B = e.logp_B.exp() * each
        rare_B = expected_B < 5
        cells = [
            *zip(count_B[~rare_B], expected_B[~rare_B], strict=True),
            (count_B[rare_B].sum(), expected_B[rare_B].sum()),
        ]
        cells = [(c, x) for c, x in cells if x > 0]
        statistic += sum(float((c - x) ** 2 / x) for c, x in cells)
        freedom += len(cells) - 1
    assert freedom > 0, "the toy has only one trajectory"
    p = float(chi2.sf(statistic, freedom))
    assert p > 1e-4, f"chi-square {statistic:.1f} on {freedom} degrees of freedom, p = {p:.2g}"


def check_gradient(toy: Toy) -> None:
    """4. REINFORCE on samples estimates the gradient of the expected reward, which finite differences confirm."""
    move(toy.policy)
    everything = [toy.enumerate(prompt) for prompt in toy.prompts]
    value = expected_reward(toy, everything)
    exact_P = flat_gradient(toy.policy, value)
    norm = float(exact_P.norm())
    assert norm > 1e-4, f"the expected reward hardly depends on the parameters (gradient norm {norm:.2g})"

    step, uphill_P = 3e-3, exact_P / norm
    ends = []
    for scale in () if toy.jumps else (step, -2 * step, step):
        nudge(toy.policy, uphill_P, scale)
        with torch.no_grad():
            ends.append(float(expected_reward(toy, everything)))
    slope = norm if toy.jumps else (ends[0] - ends[1]) / (2 * step)
    assert abs(slope - norm) <= 0.02 * norm + 1e-4, f"gradient norm {norm:.5f}, finite differences say {slope:.5f}"

    noise_KP = torch.randn(3, len(exact_P), generator=seeded(3), dtype=torch.float64)
    direction_KP = torch.cat([uphill_P[None], noise_KP / noise_KP.norm(dim=-1, keepdim=True)])
    generator, found = seeded(4), []
    for _ in range(BATCHES):
        rollouts = toy.policy.sample(toy.prompts, max(BATCH // 4 // len(toy.prompts), 1), generator)
        centred_B = rewards_of(toy, rollouts) - value.detach()
        estimate = (row_logp(toy.policy, rollouts).cpu() * centred_B).mean()
        found.append(direction_KP @ flat_gradient(toy.policy, estimate))
    found_MK, exact_K = torch.stack(found), direction_KP @ exact_P
    error_K = found_MK.std(0) / BATCHES**0.5
    assert norm > 4 * error_K[0], (
        f"the toy's reward is too noisy to test: gradient {norm:.3g} ± {float(error_K[0]):.3g}"
    )
    off_K = (found_MK.mean(0) - exact_K).abs()
    assert bool((off_K <= 4 * error_K + 1e-7).all()), (
        f"estimated {found_MK.mean(0).tolist()}, exact {exact_K.tolist()}, standard errors {error_K.tolist()}"
    )


@torch.no_grad()
def check_composition(toy: Toy) -> None:
    """5. A cell scores the same alone, in any order and company; a row is sampled the same beside other prompts."""
    move(toy.policy)
    rollouts = toy.policy.sample(toy.prompts, 5, seeded(5))
    cells_N2 = rollouts.cells()
    whole_N = toy.policy.score(rollouts, cells_N2).logp_N
    shuffled_N = torch.randperm(len(cells_N2), generator=seeded(6))
    close(toy.policy.score(rollouts, cells_N2[shuffled_N]).logp_N, whole_N[shuffled_N], 1e-5, "shuffled cells")
    for row in range(rollouts.rows):
        at_N = cells_N2[:, 0] == row
        alone_N = toy.policy.score(rollouts, cells_N2[at_N]).logp_N
        close(alone_N, whole_N[at_N], 1e-5, f"row {row} alone and in the batch")
        last_N = toy.policy.score(rollouts, cells_N2[at_N][-1:]).logp_N
        close(last_N, whole_N[at_N][-1:], 1e-5, f"the last decision of row {row} alone and in the batch")
    if toy.policy.law == "exact":
        companies = [*([prompt] for prompt in toy.prompts), list(toy.prompts), list(reversed(toy.prompts))]
        for company in companies:
            check_company(toy, company)


def check_company(toy: Toy, prompts: Sequence[Prompt]) -> None:
    """Rows sampled for these prompts together have the log-probabilities of the enumeration of each prompt alone."""
    rollouts = toy.policy.sample(prompts, 6, seeded(7))
    scored_B, recorded_B = row_logp(toy.policy, rollouts).cpu(), rollouts.behaviour_logp_BT.double().sum(-1)
    known = [enumeration(toy, prompt) for prompt in prompts]
    wanted_B = torch.stack(
        [
            known[g].logp_B[known[g].row[key]]
            for key, g in zip(toy.keys(rollouts), rollouts.group_B.tolist(), strict=True)
        ]
    )
    names = [p.text for p in prompts]
    close(scored_B, wanted_B, 1e-5, f"rows scored in the batch {names} and enumerated alone")
    close(recorded_B, wanted_B, 1e-5, f"rows sampled in the batch {names} and enumerated alone")


def check_chunks(toy: Toy) -> None:
    """6. `plan` partitions the trainable cells, and any partition gives the same log-probs and the same gradient."""
    move(toy.policy)
    rollouts = toy.policy.sample(toy.prompts, 4, seeded(8))
    cells_N2 = rollouts.cells()
    place = {tuple(cell): n for n, cell in enumerate(cells_N2.tolist())}
    weight_N = torch.randn(len(cells_N2), generator=seeded(9))
    whole_N = toy.policy.score(rollouts, cells_N2).logp_N
    whole_P = flat_gradient(toy.policy, (whole_N.cpu() * weight_N).sum())
    counts = []
    for budget in (1, 7, 40, 10**9):
        chunks = toy.policy.plan(rollouts, torch.arange(rollouts.rows), budget)
        counts.append(len(chunks))
        planned = [tuple(cell) for chunk in chunks for cell in chunk.tolist()]
        assert sorted(planned) == sorted(place), f"plan(budget={budget}) is not a partition of the trainable cells"
        total_P = torch.zeros_like(whole_P)
        for chunk in chunks:
            at_N = torch.tensor([place[tuple(cell)] for cell in chunk.tolist()])
            logp_N = toy.policy.score(rollouts, chunk).logp_N
            close(logp_N.detach().cpu(), whole_N.detach().cpu()[at_N], 1e-5, f"log-probs with budget {budget}")
            total_P += flat_gradient(toy.policy, (logp_N.cpu() * weight_N[at_N]).sum())
        off = float((total_P - whole_P).norm() / whole_P.norm())
        assert off <= 1e-5, f"gradient with budget {budget} is off by {off:.3g} of its norm"
    assert counts[0] > 1, "a budget of one token of work gives a single chunk"
    assert counts == sorted(counts, reverse=True), f"chunks per budget {counts}: a larger budget gives more chunks"
    odd = torch.arange(1, rollouts.rows, 2)
    some = {row for chunk in toy.policy.plan(rollouts, odd, 40) for row in chunk[:, 0].tolist()}
    assert some == set(rollouts.cells(odd)[:, 0].tolist()), "plan(rows) has other rows than it was given"


def check_seed(toy: Toy) -> None:
    """7. The generator alone decides: the same gives the same rollouts; global random states stay as they were."""
    state, python_state = torch.get_rng_state(), random.getstate()
    first, again, other = (toy.policy.sample(toy.prompts, 8, seeded(seed)) for seed in (10, 10, 12))
    toy.policy.score(first, first.cells())
    assert torch.equal(torch.get_rng_state(), state), "torch's global random state has moved"
    assert random.getstate() == python_state, "Python's global random state has moved"
    assert first.outputs == again.outputs
    assert first.stop == again.stop
    for name in ("behaviour_logp_BT", "mask_BT", "size_BT", "group_B"):
        assert torch.equal(getattr(first, name), getattr(again, name)), f"{name} differs under the same generator"
    for name, tensor in first.trace.items():
        assert torch.equal(tensor, again.trace[name]), f"trace[{name!r}] differs under the same generator"
    assert toy.keys(first) != toy.keys(other), "another generator gives the same rows"


@torch.no_grad()
def check_reference(toy: Toy) -> None:
    """8. Inside `reference()` the frozen start speaks; on leaving, also by an error, the weights are as they were."""
    policy = toy.policy
    rollouts = policy.sample(toy.prompts, 6, seeded(13))
    cells_N2 = rollouts.cells()
    start_N = policy.score(rollouts, cells_N2).logp_N
    move(policy)
    trained_N = policy.score(rollouts, cells_N2).logp_N
    before = {name: p.detach().clone() for name, p in policy.parameters()}
    assert float((trained_N - start_N).abs().max()) > 1e-4, "moved parameters do not change the log-probs"
    with policy.reference():
        close(policy.score(rollouts, cells_N2).logp_N, start_N, 1e-5, "log-probs inside reference() and at the start")
    try:
        with policy.reference():
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    for name, parameter in policy.parameters():
        assert torch.equal(parameter, before[name]), f"{name} has changed inside reference()"
    assert torch.equal(policy.score(rollouts, cells_N2).logp_N, trained_N), "after reference() the start still speaks"


@torch.no_grad()
def check_round_trips(module: str, toys: dict[str, Callable[[], Toy]], folder: Path) -> dict[str, float]:
    """9. Weights and rollouts saved here and loaded in a fresh process score the same: largest difference by toy.

    One process for all toys of a module.
    """
    from relgrad.training.kept_experience import save_rollouts

    scores: dict[str, Tensor] = {}
    for name, build in toys.items():
        toy = build()
        move(toy.policy)
        rollouts = toy.policy.sample(toy.prompts, 4, seeded(14))
        scores[name] = toy.policy.score(rollouts, rollouts.cells()).logp_N.cpu()
        (folder / name).mkdir(parents=True)
        toy.policy.save(folder / name / "weights")
        save_rollouts(rollouts, folder / name / "rollouts")
    result = forked.run("python", FRESH_PROCESS, module, folder)
    assert result.returncode == 0, result.stderr[-4000:]
    fresh = load_file(folder / "scores.safetensors")
    return {name: float((fresh[name] - logp_N).abs().max()) for name, logp_N in scores.items()}


def check_load_refuses(toy: Toy, folder: Path) -> None:
    """9b. `load` refuses a folder that holds no weights, and leaves the weights as they were."""
    before = [p.detach().clone() for _, p in toy.policy.parameters()]
    try:
        toy.policy.load(folder)
    except RelgradError:
        assert all(torch.equal(a, p) for a, (_, p) in zip(before, toy.policy.parameters(), strict=True))
        return
    raise AssertionError("load accepted a folder without weights")


@torch.no_grad()
def check_beside(toy: Toy) -> None:
    """7b. What is drawn for a prompt does not depend on the prompts beside it."""
    move(toy.policy)
    count, group = len(toy.prompts), 6
    together = toy.policy.sample(toy.prompts, group, Draws(18, 0, count, count))
    for number, prompt in enumerate(toy.prompts):
        alone = toy.policy.sample([prompt], group, Draws(18, 0, count, count).part(number, 1))
        rows = slice(number * group, (number + 1) * group)
        who = f"what was drawn for {prompt.text!r} alone and beside the others"
        assert alone.outputs == together.outputs[rows], f"{who}: the outputs differ"
        assert alone.stop == together.stop[rows], f"{who}: the ends differ"
        close(
            alone.behaviour_logp_BT[alone.mask_BT],
            together.behaviour_logp_BT[rows][together.mask_BT[rows]],
            2e-5,  # two batches of different shape, each within 1e-5 of the exact value
            f"{who}: log-probs",
        )


@torch.no_grad()
def check_untouched(toy: Toy) -> None:
    """11. What is recorded and what is scored is what the library's own model says, where the network is a library's."""
    if toy.untouched is None:
        return
    for _ in range(2):  # at the start, then with moved parameters
        rollouts = toy.policy.sample(toy.prompts, 8, seeded(19))
        expected_N = toy.untouched(rollouts)[rollouts.mask_BT]
        recorded_N = rollouts.behaviour_logp_BT[rollouts.mask_BT]
        close(recorded_N, expected_N, 1e-5, "recorded log-probs and the untouched model's")
        scored_N = toy.policy.score(rollouts, rollouts.cells()).logp_N.cpu()
        close(scored_N, expected_N, 1e-5, "scored log-probs and the untouched model's")
        move(toy.policy)


class ToyRewards:
    """The toy's reward as the loop calls it."""

    names = ("toy",)

    def __init__(self, toy: Toy) -> None:
        self.toy = toy

    def __call__(self, rollouts: Rollouts) -> RewardTable:
        reward_B = rewards_of(self.toy, rollouts)
        nothing = ({},) * rollouts.rows
        return RewardTable(
            self.names, torch.ones(1, dtype=torch.float64), reward_B[:, None], nothing, ("",) * rollouts.rows
        )


def sampled_rewards(toy: Toy) -> Tensor:
    """float64 [1000]: rewards of fresh samples, the same random numbers every time."""
    with torch.no_grad():
        return rewards_of(toy, toy.policy.sample(toy.prompts, BATCH // len(toy.prompts), seeded(15)))


def check_learns(toy: Toy) -> None:
    """10. Mean reward rises under the real training loop, by more than chance explains (5 standard errors)."""
    from relgrad.objectives.losses import PolicyLoss
    from relgrad.training.grpo import Grpo, GrpoSettings, train

    before_B = sampled_rewards(toy)
    settings = GrpoSettings(steps=25, num_prompts=2 * len(toy.prompts), num_generations=8, learning_rate=0.03)
    steps: list[int] = []
    loop = Grpo(toy.policy, toy.prompts, ToyRewards(toy), PolicyLoss(), settings, seed=16)
    train(loop, lambda record: steps.append(record.step))
    after_B = sampled_rewards(toy)
    assert steps == list(range(1, 26))
    assert toy.policy.version == 25, f"25 updates, but the policy's version is {toy.policy.version}"
    error = float(((before_B.var() + after_B.var()) / len(after_B)).sqrt())
    rise = float(after_B.mean() - before_B.mean())
    assert rise > 5 * error, (
        f"mean reward went from {float(before_B.mean()):.3f} to {float(after_B.mean()):.3f} ± {error:.3f}"
    )


EXACT_ONLY = {"mass": check_mass, "terms": check_terms, "frequency": check_frequency, "gradient": check_gradient}
EVERYONE = {
    "parity": check_parity,
    "composition": check_composition,
    "chunks": check_chunks,
    "seed": check_seed,
    "beside": check_beside,
    "reference": check_reference,
    "learns": check_learns,
    "untouched": check_untouched,
}
