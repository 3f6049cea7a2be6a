"""Tiny policies for the contract tests: every law, over the whole answer and in blocks; "a", "b" and the end, few positions.

Trajectories are enumerated from what could happen at all, and scored by plain forward passes over one prompt and one state alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from relgrad.core.protocols import Toy
from relgrad.core.types import Output, Prompt, Rollouts
from relgrad.estimators.bounds import Bgpo, Spg
from relgrad.estimators.coupled import Coupled
from relgrad.estimators.elbo import Elbo
from relgrad.estimators.mean_field import MeanField
from relgrad.estimators.merged_steps import MergedSteps
from relgrad.laws.tiled import Support
from relgrad.laws.unmasking.ancestral import Ancestral
from relgrad.laws.unmasking.fixed_order import FixedOrder
from relgrad.laws.unmasking.interface import MASKED, Outcome, Places
from relgrad.networks.diffusion_gpt.network import GPT, GPTConfig
from relgrad.networks.masked.interface import PROMPT
from relgrad.policies.unmasking.open import diffusion_gpt
from relgrad.policies.unmasking.policy import UnmaskingPolicy
from relgrad.policies.unmasking.settings import Law, Network, Settings
from relgrad.policies.unmasking.supports import Log, recorded
from relgrad.policies.unmasking.symbols import VocabularySymbols
from relgrad.text.vocabulary import Vocabulary
from relgrad.trajectories.states import pack_states, unpack_states
from relgrad.trajectories.trained_steps import tokens_per_step

NEVER = -60.0
"""Nats: rarer trajectories are left out of an enumeration. What a law calls impossible is below it."""
WHOLE: dict[str, Any] = {"max_completion_length": 3, "steps": 2}
BLOCKS: dict[str, Any] = {"max_completion_length": 4, "block_length": 2, "steps": 4}
PROMPTS = (Prompt("ab", id=0), Prompt("", id=1), Prompt("bba", id=2))


class Path(NamedTuple):
    """One trajectory: its states, the order of every position within its step, and which steps there were."""

    states: tuple[tuple[int, ...], ...]
    order: tuple[int, ...]
    live: tuple[bool, ...]


def make(
    order: str, *, prompts: tuple[Prompt, ...] = PROMPTS, law: dict[str, Any] | None = None, **options: Any
) -> Callable[[], Toy]:
    """A constructor of one toy with these settings."""

    def build() -> Toy:
        policy = small(law=Law(order=order, **(law or {})), **options)
        return Toy(policy, prompts, lambda prompt: enumerate_all(policy, prompt), keys, reward, jumps=policy.jumps)

    return build


def small(*, length: int = 8, **options: Any) -> UnmaskingPolicy:
    """A random policy over "ab" with rows of up to `length`, the same every time, whose laws are far from uniform."""
    network = Network(block_size=length, n_layer=2, n_head=2, n_embd=16, dropout=options.pop("dropout", 0.0))
    settings = Settings(network=network, device="cpu", **options)
    vocabulary = Vocabulary.of_text("ab")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT(GPTConfig(vocab_size=vocabulary.size, **network.model_dump()))
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.35)
    policy = UnmaskingPolicy(diffusion_gpt(model, VocabularySymbols(vocabulary)), settings)
    policy.freeze_reference()
    return policy


def keys(rollouts: Rollouts) -> list[Hashable]:
    """All states of every row, and the order within steps where it counts."""
    parts = [unpack_states(rollouts.trace, torch.arange(rollouts.rows)).flatten(1)]
    if "order_BE" in rollouts.trace:
        parts.append(rollouts.trace["order_BE"])
    return [tuple(row) for row in torch.cat(parts, 1).tolist()]


def reward(output: Output) -> float:
    """How many "a"s there are, less a little for "b"s, and for nothing at all."""
    return float(output.text.count("a")) - 0.25 * output.text.count("b") - 0.5 * (not output.text)


@torch.no_grad()
def enumerate_all(policy: UnmaskingPolicy, prompt: Prompt) -> Rollouts:
    """Every trajectory with positive probability."""
    trace = policy.read([prompt])
    paths = all_paths(policy, int((trace["place_GE"] >= 0).sum()))
    states = [torch.tensor([path.states[t] for path in paths]) for t in range(policy.number_of_steps + 1)]
    order_BE = torch.tensor([path.order for path in paths])
    live_BT = torch.tensor([path.live for path in paths])
    log, logps = Log(len(paths), policy.number_of_steps), list[Tensor]()
    for step in range(policy.number_of_steps):
        logp_B, row_C, support = plain_step(policy, trace, states[step], states[step + 1], order_BE, step)
        logps.append(torch.where(live_BT[:, step], logp_B, 0.0))
        if support is not None:
            log.add(row_C, step, support)
    logp_BT = torch.stack(logps, 1).clamp(min=2 * NEVER)
    trace |= pack_states(states, policy.symbols.size)
    if policy.engine.law.ordered:
        trace["order_BE"] = order_BE.to(torch.int16)
    if policy.engine.law.truncation.truncates:
        trace |= log.trace()
    group_B = torch.zeros(len(paths), dtype=torch.int64)
    outputs, stops, length_B = policy.texts(trace, group_B, states[-1])
    everything = Rollouts(
        (prompt,), group_B, logp_BT.float(), live_BT, tokens_per_step(live_BT, length_B), outputs, stops, policy.version, trace,
    )  # fmt: skip
    return only_rows(everything, (logp_BT.sum(-1) > NEVER).nonzero()[:, 0], policy)


def all_paths(policy: UnmaskingPolicy, positions: int) -> list[Path]:
    """Whatever could happen from all masks on, likely or not."""
    start = (policy.symbols.mask_id,) * positions
    paths = [Path((start,), (0,) * positions, ())]
    for step in range(policy.number_of_steps):
        following = {path.states[-1]: list(successors(policy, path.states[-1], step)) for path in paths}
        paths = [
            Path(
                (*path.states, after),
                tuple(n if a != b else o for a, b, n, o in zip(after, path.states[-1], new, path.order, strict=True)),
                (*path.live, live),
            )
            for path in paths
            for after, new, live in following[path.states[-1]]
        ]
    return paths


def successors(
    policy: UnmaskingPolicy, state: tuple[int, ...], step: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], bool]]:
    """(state after the step, order within it, whether it was a step at all)."""
    law, state_1E = policy.engine.law, torch.tensor([state])
    work = policy.steps.schedule.work(law, state_1E, torch.ones_like(state_1E, dtype=torch.bool), torch.tensor([step]))
    nothing = (0,) * len(state)
    if not bool(work.live_N):
        yield state, nothing, False
        return
    for shown, hidden in splits(policy, work.places, work.at[1].tolist()):
        for tokens in itertools.product(policy.symbols.drawable_K.tolist(), repeat=len(shown)):
            after = list(state)
            for place in hidden:
                after[place] = policy.symbols.mask_id
            for place, token in zip(shown, tokens, strict=True):
                after[place] = token
            for turns in itertools.permutations(range(len(shown))) if law.ordered else [(0,) * len(shown)]:
                order = list(nothing)
                for place, turn in zip(shown, turns, strict=True):
                    order[place] = turn
                yield tuple(after), tuple(order), True


def splits(policy: UnmaskingPolicy, places: Places, at: list[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Of one step with these positions: (those that may be given a token, those that then hold the mask)."""
    law, quota = policy.engine.law, int(places.quota_N)
    masked = [place for place, token in zip(at, places.token_M.tolist(), strict=True) if token == MASKED]
    if law.rewrites:
        for again in itertools.combinations(at, quota):
            yield [place for place in masked if place not in again], list(again)
        return
    sizes = [quota]
    if isinstance(law, Ancestral):
        sizes = [len(masked)] if int(places.left_N) == 1 else list(range(len(masked) + 1))
    elif law.adaptive:
        sizes = list(range(quota, len(masked) + 1))
    for size in sizes:
        for shown in itertools.combinations(masked, size):
            if isinstance(law, FixedOrder) and law.order == "left_to_right" and shown != tuple(masked[:size]):
                continue
            yield list(shown), [place for place in masked if place not in shown]


def network_logits(policy: UnmaskingPolicy, prompt_L: Tensor, state_UE: Tensor) -> Tensor:
    """[U, E, V]: what the policy's network says at every written position of rows with one prompt."""
    ids_UL = torch.cat([prompt_L.expand(len(state_UE), -1), state_UE], 1)
    block_E = torch.arange(state_UE.shape[1]) // policy.settings.block
    block_UL = torch.cat([torch.full((len(prompt_L),), PROMPT), block_E]).expand_as(ids_UL)
    hidden_ULH = policy.network.hidden(ids_UL, torch.ones_like(ids_UL, dtype=torch.bool), block_UL)
    return policy.network.logits(hidden_ULH[:, len(prompt_L) :].flatten(0, 1)).unflatten(0, state_UE.shape)


def plain_step(
    policy: UnmaskingPolicy,
    trace: dict[str, Tensor],
    before_BE: Tensor,
    after_BE: Tensor,
    order_BE: Tensor,
    step: int,
    logits_of: Callable[[UnmaskingPolicy, Tensor, Tensor], Tensor] = network_logits,
) -> tuple[Tensor, Tensor, Support | None]:
    """(log-probability [B] of a step of B trajectories, whose supports these are, supports), by one plain forward pass."""
    law, symbols = policy.engine.law, policy.symbols
    there_BE = torch.ones_like(before_BE, dtype=torch.bool)
    places, at, _ = policy.steps.schedule.work(law, before_BE, there_BE, torch.full((len(before_BE),), step))
    token_M = torch.where(after_BE[at] == symbols.mask_id, MASKED, after_BE[at])
    outcome = Outcome(
        token_M, torch.where(token_M == MASKED, 0, order_BE[at]) if law.ordered else torch.zeros_like(token_M)
    )
    needs_M = law.needs(places, outcome)
    state_UE, number_B = torch.unique(before_BE, dim=0, return_inverse=True)
    prompt_L = trace["row_GL"][0, : int(trace["place_GE"][0, 0])].long()
    allowed_V = torch.full((symbols.size,), -torch.inf).index_fill(0, symbols.drawable_K, 0.0)
    logits_UEV = logits_of(policy, prompt_L, state_UE) + allowed_V
    logits_CV = logits_UEV[number_B[at[0]], at[1]][needs_M]
    support_CV = law.truncation.support(logits_CV) if law.truncation.truncates else None
    logp_B = law.terms(logits_CV, places.only(needs_M), outcome.only(needs_M), support_CV)[0].double()
    support = None if support_CV is None else Support.pack(support_CV)
    return logp_B + law.free(places, outcome), at[0][needs_M], support


def only_rows(rollouts: Rollouts, row_K: Tensor, policy: UnmaskingPolicy) -> Rollouts:
    """The chosen rows of rollouts of one prompt."""
    trace, steps = dict(rollouts.trace), rollouts.mask_BT.shape[1]
    states = list(unpack_states(trace, row_K).unbind(1))
    if "support_first" in trace:
        cell_N2 = torch.stack([row_K.repeat_interleave(steps), torch.arange(steps).repeat(len(row_K))], 1)
        support, first = recorded(trace, cell_N2, steps), trace["support_first"]
        assert support is not None
        count_N = (first[1:] - first[:-1]).view(-1, steps)[row_K].flatten()
        trace |= {
            "support_first": torch.nn.functional.pad(count_N.cumsum(0), (1, 0)),
            "support_offset": support.offset_N1,
            "support_index": support.entry_M,
        }
    if "order_BE" in trace:
        trace["order_BE"] = trace["order_BE"][row_K]
    trace |= pack_states(states, policy.symbols.size)
    kept = row_K.tolist()
    return Rollouts(
        rollouts.prompts, rollouts.group_B[row_K], rollouts.behaviour_logp_BT[row_K], rollouts.mask_BT[row_K],
        rollouts.size_BT[row_K], tuple(rollouts.outputs[i] for i in kept), tuple(rollouts.stop[i] for i in kept),
        rollouts.policy_version, trace,
    )  # fmt: skip


def toys() -> dict[str, Any]:
    """Tiny instances for the contract tests, by name."""
    two = PROMPTS[:2]
    return {
        "random": make("random", **WHOLE),
        "random-blocks-temperature": make("random", prompts=two, temperature=0.8, **BLOCKS),
        "left-to-right-dropout-configured": make("left_to_right", dropout=0.2, **WHOLE),
        "left-to-right-blocks-top-p": make("left_to_right", prompts=two, top_p=0.9, **BLOCKS),
        "plackett-luce-temperature": make("plackett_luce", temperature=0.7, law={"order_temperature": 0.5}, **WHOLE),
        "plackett-luce-margin-blocks": make(
            "plackett_luce", prompts=two, law={"score": "margin", "order_temperature": 0.2}, **BLOCKS
        ),
        "low-confidence": make("low_confidence", **WHOLE),
        "low-confidence-tempered-blocks": make(
            "low_confidence", prompts=two, temperature=0.8, law={"confidence": "tempered"}, **BLOCKS
        ),
        "threshold": make("threshold", law={"threshold": 0.6}, max_completion_length=3),
        "threshold-blocks-top-p": make(
            "threshold", prompts=two, top_p=0.9, law={"threshold": 0.5, "confidence": "tempered"}, **BLOCKS
        ),
        "ancestral-average": make("ancestral", max_completion_length=2, steps=3, ema_decay=0.9),
        "ancestral-blocks": make("ancestral", max_completion_length=2, block_length=1, steps=4),
        "remask": make("remask", max_completion_length=2, steps=3, law={"start_ratio": 0.9, "end_ratio": 0.3}),
        "remask-blocks": make(
            "remask",
            prompts=two,
            max_completion_length=4,
            block_length=2,
            steps=4,
            law={"start_ratio": 0.5, "end_ratio": 0.5},
        ),
        "remask-doubtful": make(
            "remask",
            max_completion_length=3,
            steps=3,
            law={"remask_by": "confidence", "start_ratio": 0.9, "end_ratio": 0.6},
        ),
        "mean-field": make("low_confidence", estimator=MeanField(), **WHOLE),
        "coupled-blocks": make("random", prompts=two, estimator=Coupled(), **BLOCKS),
        "elbo-antithetic-temperature": make(
            "random", temperature=0.8, estimator=Elbo(antithetic=True, per="token"), **WHOLE
        ),
        "bgpo": make("random", estimator=Bgpo(), **WHOLE),
        "spg": make("low_confidence", estimator=Spg(), **WHOLE),
        "merged-steps-blocks": make("plackett_luce", prompts=two, estimator=MergedSteps(), **BLOCKS),
    }
