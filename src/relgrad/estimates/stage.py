"""A stage's memory and work, from its policy's size and its settings. All bytes and operations; nothing is rounded up.

Memory is a sum of what stays (weights, gradient and moments, a reference, an average) and the larger of what drawing and what
learning need beside it. Work is operations of one optimizer step, drawing and learning apart, since a machine does them at
different speeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from relgrad.estimates.policy_size import Lengths, Passes, PolicySize

GRADIENT, MOMENTS = 4, 8
"""Bytes of a trained weight's gradient and of AdamW's two moments, float32."""
LOGITS_COPIES = 3.0
"""Tensors of whole logits that exist at once: themselves, their probabilities, their gradient."""
TILES = 512 * 512 * 4 * 4.0
"""Where a distribution is never whole: bytes of a few tiles."""
EVALUATED = 16
"""Prompts that an evaluation draws at once."""
WHOLE_LOGITS = 2.0**25 * 4
"""Bytes of logits beyond which policies compute them piece by piece."""


@dataclass(frozen=True)
class Work:
    """Operations of one optimizer step, or of one prompt of an evaluation, and the tokens that are drawn (or learnt) in it."""

    draw_operations: float = 0.0
    learn_operations: float = 0.0
    tokens: float = 0.0

    @property
    def operations(self) -> float:
        return self.draw_operations + self.learn_operations


@dataclass(frozen=True)
class StageEstimate:
    """What one stage will need.

    memory          what stays, by what it is for, in bytes
    either          what is there at different times, in bytes
    drawn_at_once, learnt_at_once
                    positions of one call while drawing and while learning: a machine's speed depends on them
    chunk_tokens    of the widest chunk, as `micro_batch_tokens` counts
    """

    memory: dict[str, float]
    either: dict[str, float]
    step: Work
    evaluation: Work
    drawn_at_once: float
    learnt_at_once: float
    chunk_tokens: float
    parameters: int
    trained: int

    @property
    def bytes(self) -> float:
        """At the peak."""
        return sum(self.memory.values()) + max(self.either.values(), default=0.0)


@dataclass(frozen=True)
class Rollout:
    """The settings of a `grpo` section that count here.

    steps_per_generation, num_iterations
                  an optimizer step takes num_prompts / steps_per_generation groups, each of which serves num_iterations steps
    scored_again  whether log-probabilities are computed once more before the gradient (entropy, exact KL, later passes)
    reference     whether the reference scores every batch
    """

    num_prompts: int
    num_generations: int
    micro_batch_tokens: int
    steps_per_generation: int = 1
    num_iterations: int = 1
    scored_again: bool = False
    reference: bool = False


@dataclass(frozen=True)
class Prompts:
    """Lengths of some of a stage's prompts: those it trains on (its examples), and those it is evaluated on."""

    trained: Sequence[Lengths]
    evaluated: Sequence[Lengths]


def standing(size: PolicySize, reference: bool) -> dict[str, float]:
    """Bytes that stay: weights, what the optimizer keeps, copies."""
    network = size.network
    frozen = network.parameters if size.adapted else 0
    memory = {"weights": network.parameters * size.weight_bytes}
    memory["adapter"] = 4.0 * size.trained if frozen else 0.0
    memory["gradient"] = float(GRADIENT * size.trained)
    memory["optimizer"] = float(MOMENTS * size.trained)
    memory["reference"] = 4.0 * size.trained if reference else 0.0
    memory["average"] = 4.0 * size.trained if size.averaged else 0.0
    return {name: value for name, value in memory.items() if value}


def drawing_bytes(size: PolicySize, passes: Passes, groups: float) -> float:
    """What drawing so many groups at once needs: the cache, one layer's numbers, logits."""
    network = size.network
    cache = groups * passes.cached * network.cached_bytes(size.number_bytes)
    passing = groups * passes.at_once * network.passing_bytes(size.number_bytes)
    return cache + passing + _logits(network.vocabulary, groups * passes.logits_at_once)


def learning_bytes(size: PolicySize, passes: Passes, share: float) -> float:
    """What a chunk with so many (or such a part) of these passes keeps for its backward pass, and needs in it."""
    network = size.network
    kept = network.kept_bytes(size.number_bytes, size.recomputed) + network.passing_bytes(size.number_bytes)
    return share * passes.positions * kept + _logits(network.vocabulary, share * passes.logits_at_once)


def _logits(vocabulary: int, positions: float) -> float:
    if not positions:
        return TILES
    return LOGITS_COPIES * min(4.0 * vocabulary * positions, WHOLE_LOGITS)


def grpo(size: PolicySize, prompts: Prompts, settings: Rollout) -> StageEstimate:
    """What a GRPO stage needs; the widest chunk is that of its longest prompts."""
    longest, mean = _longest(prompts.trained), _mean(prompts.trained)
    whole, least = size.chunk_tokens(longest)
    groups = settings.num_prompts / settings.steps_per_generation
    chunk = min(max(settings.micro_batch_tokens, least), groups * whole)
    drawing, scored = size.draw(longest), size.score(longest)
    either = {
        "drawing": drawing_bytes(size, drawing, settings.num_prompts),
        "evaluation": _evaluation_bytes(size, prompts),
        "chunk": learning_bytes(size, scored, chunk / whole),
    }
    draw, score = size.draw(mean), size.score(mean)
    passes = 1 + (1.0 if size.adapted else 2.0) + (1.0 if size.recomputed else 0.0)
    passes += (1.0 if settings.scored_again and groups * whole > chunk else 0.0) + (1.0 if settings.reference else 0.0)
    drawn = groups / settings.num_iterations
    step = Work(
        draw_operations=drawn * _forward(size, draw),
        learn_operations=groups * passes * _forward(size, score),
        tokens=drawn * mean.completion * mean.each,
    )
    return StageEstimate(
        memory=standing(size, settings.reference),
        either=either,
        step=step,
        evaluation=_evaluated(size, prompts),
        drawn_at_once=settings.num_prompts * draw.at_once,
        learnt_at_once=chunk / whole * scored.positions,
        chunk_tokens=chunk,
        parameters=size.parameters,
        trained=size.trained,
    )


def sft(size: PolicySize, prompts: Prompts, batch_size: int, pieces: int) -> StageEstimate:
    """What a supervised stage needs."""
    longest, mean = size.learn(_longest(prompts.trained)), size.learn(_mean(prompts.trained))
    piece = batch_size / pieces
    passes = 3.0 - (1.0 if size.adapted else 0.0) + (1.0 if size.recomputed else 0.0)
    return StageEstimate(
        memory=standing(size, False),
        either={"evaluation": _evaluation_bytes(size, prompts), "chunk": learning_bytes(size, longest, piece)},
        step=Work(learn_operations=batch_size * passes * _forward(size, mean), tokens=batch_size * mean.decisions),
        evaluation=_evaluated(size, prompts),
        drawn_at_once=EVALUATED * size.draw(_mean(prompts.evaluated)).at_once if prompts.evaluated else 1.0,
        learnt_at_once=piece * mean.positions,
        chunk_tokens=piece * longest.positions,
        parameters=size.parameters,
        trained=size.trained,
    )


def _evaluation_bytes(size: PolicySize, prompts: Prompts) -> float:
    if not prompts.evaluated:
        return 0.0
    return drawing_bytes(size, size.draw(_longest(prompts.evaluated)), min(EVALUATED, len(prompts.evaluated)))


def _evaluated(size: PolicySize, prompts: Prompts) -> Work:
    """Of one prompt: its completions."""
    if not prompts.evaluated:
        return Work()
    mean = _mean(prompts.evaluated)
    return Work(draw_operations=_forward(size, size.draw(mean)), tokens=mean.completion * mean.each)


def _forward(size: PolicySize, passes: Passes) -> float:
    network = size.network
    return network.operations(passes.positions, passes.context) + network.head_operations(passes.decisions)


def _longest(lengths: Sequence[Lengths]) -> Lengths:
    return Lengths(max(x.prompt for x in lengths), max(x.completion for x in lengths), lengths[0].each)


def _mean(lengths: Sequence[Lengths]) -> Lengths:
    count = len(lengths)
    return Lengths(sum(x.prompt for x in lengths) / count, sum(x.completion for x in lengths) / count, lengths[0].each)
