"""What a recipe will need before it is started: memory against what the device has, operations, hours, money.

Nothing is built but the task, of which some prompts are read; with `measured`, every stage is built too and takes two optimizer
steps, of which the second counts. Nothing is written.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from relgrad.core import registry
from relgrad.core.errors import RelgradError
from relgrad.core.randomness import generator
from relgrad.core.settings import settings_of
from relgrad.estimates.policy_size import Lengths, PolicySize, Sized
from relgrad.estimates.stage import EVALUATED, Prompts, StageEstimate
from relgrad.networks.causal.load import DTYPES
from relgrad.networks.weights import device
from relgrad.runs import machine
from relgrad.runs.build import is_linked, linked_rewards, load_task, resolve, with_epochs_counted
from relgrad.runs.recipe import Recipe
from relgrad.stages.kind import Materials, kind_of, loop_settings
from relgrad.stages.settings import Stage

LOOKED_AT = 64
"""Prompts whose lengths are read."""
HEADROOM = 0.9
"""The share of a device's memory that a run may fill: allocators keep some, and estimates err."""


@dataclass(frozen=True)
class StageForecast:
    """What one stage will need.

    why       there are no figures, in words
    needs     see estimates.stage
    libraries bytes taken before anything is built
    seconds   of one optimizer step, and of all evaluations, together with where the time is from
    """

    stage: str
    why: str = ""
    needs: StageEstimate | None = None
    steps: int = 0
    evaluated_prompts: float = 0.0
    libraries: float = 0.0
    free: float = 0.0
    total: float = 0.0
    device: str = ""
    step_seconds: float | None = None
    evaluation_seconds: float | None = None
    measured: bool = False
    advice: str = ""

    @property
    def bytes(self) -> float:
        return (self.needs.bytes if self.needs is not None else 0.0) + self.libraries

    @property
    def hours(self) -> float | None:
        """Of all steps and evaluations."""
        if self.step_seconds is None:
            return None
        return (self.steps * self.step_seconds + (self.evaluation_seconds or 0.0)) / 3600


def require_price(price: float | None) -> None:
    """Raise RelgradError for what is no price."""
    if price is not None and not 0 <= price < float("inf"):
        raise RelgradError(f"--price-per-hour {price:g}: give what an hour of the machine costs, for example 1.99")


def forecast(recipe: Recipe, measured: bool = False) -> list[StageForecast]:
    """What every stage of a recipe will need. Raises RelgradError as resolving the recipe and loading its tasks does."""
    return [_stage(with_epochs_counted(stage), measured) for stage in resolve(recipe).stages]


def _stage(stage: Stage, measured: bool) -> StageForecast:
    empty = StageForecast(stage.called, steps=loop_settings(stage).steps)
    estimate = kind_of(stage).estimate
    if estimate is None:
        return replace(empty, why=f"there is no estimate for stages of kind {stage.stage}")
    try:
        module = registry.find("policies", stage.policy.kind)
        if not isinstance(module, Sized):
            raise RelgradError(f"there is no estimate for policies of kind {stage.policy.kind}")
        settings = settings_of(stage.policy, module.Settings, "policy")
        size = module.size(settings, None)
        needs = estimate(stage, size, _prompts(stage, module, settings))
    except RelgradError as error:
        return replace(empty, why=str(error))
    there = machine.memory(device.choose(settings.device))
    outlook = replace(
        empty, needs=needs, evaluated_prompts=_evaluations(stage), libraries=there.libraries, free=there.free,
        total=there.total, device=there.device,
    )  # fmt: skip
    outlook = replace(outlook, advice=_advice(stage, size, outlook) if outlook.bytes > HEADROOM * there.free else "")
    if outlook.advice and measured:
        return outlook  # two steps would end without memory
    return _by_two_steps(stage, outlook) if measured else _by_speed(settings, size, outlook)


def _prompts(stage: Stage, module: Sized, settings: Any) -> Prompts:
    """The lengths of some of the stage's prompts, spread over the task."""
    task = load_task(stage)
    column = kind_of(stage).targets
    prompts = _some(task.train)
    targets = [str(prompt.columns.get(column(stage), "")) for prompt in prompts] if column is not None else []
    each = 1 if column is not None else loop_settings(stage).num_generations
    trained = [replace(lengths, each=each) for lengths in module.lengths(settings, prompts, targets)]
    judged = _some(task.test)[: stage.evaluation.num_prompts] if stage.judged_by else []
    evaluated = module.lengths(settings, judged, []) if judged else []
    return Prompts(trained, [_each(lengths, stage.evaluation.num_generations) for lengths in evaluated])


def _each(lengths: Lengths, each: int) -> Lengths:
    return replace(lengths, each=each)


def _some(prompts: Sequence[Any]) -> list[Any]:
    count = min(len(prompts), LOOKED_AT)
    return [prompts[number * len(prompts) // count] for number in range(count)]


def _evaluations(stage: Stage) -> float:
    """Prompts that are evaluated in all: the test ones before and after, validation ones in between."""
    if not stage.judged_by:
        return 0.0
    every = stage.evaluation.every
    return stage.evaluation.num_prompts * (2 + (loop_settings(stage).steps // every if every else 0))


# ---------------------------------------------------------------------- time


def _by_speed(settings: Any, size: PolicySize, outlook: StageForecast) -> StageForecast:
    """Operations by the speed of a layer of this shape on this machine."""
    needs = outlook.needs
    assert needs is not None
    where, dtype = device.choose(settings.device), DTYPES[settings.dtype]
    drawing = machine.speed(size.network, needs.drawn_at_once, where, dtype, learning=False)
    learning = machine.speed(size.network, needs.learnt_at_once, where, dtype, learning=True)
    return replace(
        outlook,
        step_seconds=needs.step.draw_operations / drawing + needs.step.learn_operations / learning,
        evaluation_seconds=outlook.evaluated_prompts * needs.evaluation.draw_operations / drawing,
    )


def _by_two_steps(stage: Stage, outlook: StageForecast) -> StageForecast:
    """Two optimizer steps and a few evaluated prompts of the stage itself, from its untrained start."""
    if is_linked(stage):
        return replace(outlook, why="its rewards need what another stage trains, so no steps can be tried before")
    task = load_task(stage)

    def rewards(components: Any, timeout: float) -> Any:
        return linked_rewards(components, timeout, None)

    parts = kind_of(stage).build(stage, Materials(task, None, rewards))
    try:
        parts.loop.update()
        started = time.perf_counter()
        parts.loop.update()
        step = time.perf_counter() - started
        prompts = list(task.test[: min(EVALUATED, stage.evaluation.num_prompts)])
        started = time.perf_counter()
        if outlook.evaluated_prompts:
            parts.policy.sample(prompts, stage.evaluation.num_generations, generator(stage.seed, "estimate"))
        one = (time.perf_counter() - started) / max(len(prompts), 1)
    finally:
        for rewarded in {id(r): r for r in (parts.rewards, parts.judged_by) if r is not None}.values():
            rewarded.close()
    return replace(outlook, step_seconds=step, evaluation_seconds=outlook.evaluated_prompts * one, measured=True)


# ---------------------------------------------------------------------- where it does not fit


def _advice(stage: Stage, size: PolicySize, outlook: StageForecast) -> str:
    """The setting to change, by what takes most."""
    needs = outlook.needs
    assert needs is not None
    section, settings = kind_of(stage).loop, loop_settings(stage)
    item = max(needs.either, key=lambda name: needs.either[name])
    if sum(needs.memory.values()) > HEADROOM * outlook.free - outlook.libraries:
        if not size.adapted:
            return "train an adapter (policy.lora) in place of all weights, or take a smaller model"
        return "keep the weights in fewer bits (policy.quantize, or policy.dtype), or take a smaller model"
    if item == "evaluation":
        return f"lower evaluation.num_generations ({stage.evaluation.num_generations})"
    if item == "drawing":
        return f"lower {section}.num_prompts ({settings.num_prompts}) or {section}.num_generations ({settings.num_generations})"
    if section == "sft":
        return f"raise sft.gradient_accumulation_steps ({settings.gradient_accumulation_steps})"
    if "micro_batch_tokens" in dict(settings) and needs.chunk_tokens <= settings.micro_batch_tokens:
        return f"lower {section}.micro_batch_tokens ({settings.micro_batch_tokens}) below {needs.chunk_tokens:.0f}"
    return "set policy.gradient_checkpointing, or let shorter texts be written (policy.max_completion_length)"


# ---------------------------------------------------------------------- for people and programs


def as_record(outlook: StageForecast, price: float | None) -> dict[str, Any]:
    """Plain data: bytes, seconds, operations."""
    record: dict[str, Any] = {"stage": outlook.stage, "steps": outlook.steps}
    if outlook.why:
        record["why"] = outlook.why
    if outlook.needs is not None:
        needs = outlook.needs
        record |= {
            "parameters": needs.parameters, "trained": needs.trained, "bytes": outlook.bytes, "free_bytes": outlook.free,
            "device": outlook.device, "memory": {"libraries": outlook.libraries, **needs.memory}, "either": needs.either,
            "chunk_tokens": needs.chunk_tokens, "tokens_per_step": needs.step.tokens,
            "operations_per_step": needs.step.operations, "evaluation": asdict(needs.evaluation), "advice": outlook.advice,
        }  # fmt: skip
    record |= {
        "step_seconds": outlook.step_seconds,
        "evaluation_seconds": outlook.evaluation_seconds,
        "hours": outlook.hours,
    }
    record["time_from"] = (
        "two steps" if outlook.measured else "operations" if outlook.step_seconds is not None else None
    )
    if price is not None:
        record["cost"] = None if outlook.hours is None else outlook.hours * price
    return record


def in_lines(outlook: StageForecast, price: float | None) -> list[str]:
    """A few lines for people."""
    if outlook.needs is None:
        return [f"estimate of {outlook.stage}: none; {outlook.why}"]
    needs = outlook.needs
    least = sorted(needs.memory.items(), key=lambda item: -item[1])
    widest = max(needs.either, key=lambda name: needs.either[name])
    held = ", ".join(f"{name} {_bytes(value)}" for name, value in least)
    others = ", or ".join(f"{name} {_bytes(value)}" for name, value in needs.either.items() if value)
    lines = [
        f"estimate of {outlook.stage}: {needs.parameters:,} parameters, {needs.trained:,} trained",
        f"  memory  {_bytes(outlook.bytes)} of {_bytes(outlook.free)} free ({outlook.device}): libraries "
        f"{_bytes(outlook.libraries)}, {held}; then {others} (most: {widest})",
        f"  a step  {needs.step.tokens:,.0f} tokens, {_operations(needs.step.operations)} FLOPs; widest chunk "
        f"{needs.chunk_tokens:,.0f} tokens",
    ]
    if outlook.step_seconds is not None and outlook.hours is not None:
        source = "by two steps here" if outlook.measured else "by the speed of one such layer here"
        cost = "" if price is None else f", {outlook.hours * price:,.2f} at {price:g} an hour"
        lines.append(
            f"  time    {outlook.steps:,} steps x {outlook.step_seconds:.3g} s + evaluations "
            f"{outlook.evaluation_seconds or 0:.3g} s = {outlook.hours:.2g} hours ({source}, without rewards that take long){cost}"
        )
    if outlook.why:
        lines.append(f"  time    {outlook.why}")
    if outlook.advice:
        lines.append(f"  warning: this will hardly fit: {outlook.advice}")
    return lines


def _bytes(value: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1024:.3g} KiB"


def _operations(value: float) -> str:
    for letter, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g} "
