"""Everything that one edit makes of a workflow, with the probability of each: proposals that need no model.

An edit changes one place: another leaf in its place, an operator around it, one away from it, an item of an ensemble more or fewer,
another prompt. All kinds of edits that are possible are equally likely, and so are all edits of one kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from relgrad.environments.workflows.language import LEAVES, Step, canonical

COPIES = 3
"""Items of a new ensemble."""


@dataclass(frozen=True)
class Space:
    """The workflows that edits lead to: their operators, the prompts of `generate`, and how many operators one may have."""

    operators: tuple[str, ...] = ("generate", "program", "ensemble", "revise", "verify")
    prompts: tuple[str, ...] = ("plain", "careful")
    max_size: int = 7

    @property
    def leaves(self) -> tuple[Step, ...]:
        prompted = [Step("generate", (), prompt) for prompt in self.prompts] if "generate" in self.operators else []
        others = [Step(name) for name in LEAVES if name in self.operators and name != "generate"]
        return tuple(map(canonical, [*prompted, *others]))

    def has(self, step: Step) -> bool:
        """Whether edits may lead to it, by its size."""
        return step.size <= self.max_size


@dataclass(frozen=True)
class Edit:
    """What was done, in words, and how likely the edit is (all ways to the same workflow added)."""

    words: str
    probability: float


@lru_cache(maxsize=4096)
def neighbours(step: Step, space: Space) -> Mapping[Step, Edit]:
    """Every other workflow of the space that one edit leads to; the probabilities add up to 1. Empty where there is none."""
    by_kind: dict[str, list[tuple[str, Step]]] = {}
    for kind, words, changed in _all(step, space):
        child = canonical(changed)
        if space.has(child) and child != step:
            by_kind.setdefault(kind, []).append((words, child))
    children: dict[Step, Edit] = {}
    for edits in by_kind.values():
        share = 1 / len(by_kind) / len(edits)
        for words, child in edits:
            before = children.get(child, Edit(words, 0.0))
            children[child] = replace(before, probability=before.probability + share)
    return children


def _all(step: Step, space: Space) -> Iterator[tuple[str, str, Step]]:
    """(kind, words, the whole workflow after it) of every edit."""
    for place, put in _places(step, lambda changed: changed):
        for leaf in space.leaves:
            yield "replace", f"{place.text} becomes {leaf.text}", put(leaf)
            if "verify" in space.operators:
                yield "verify", f"verify {place.text}, else {leaf.text}", put(Step("verify", (place, leaf)))
                yield "verify", f"verify {leaf.text} before {place.text}", put(Step("verify", (leaf, place)))
            if "ensemble" in space.operators:
                yield "ensemble", f"vote of {place.text} and {leaf.text}", put(Step("ensemble", (place, leaf)))
            if "test" in space.operators:
                yield "test", f"test {place.text}, else {leaf.text}", put(Step("test", (place, leaf)))
                yield "test", f"test {leaf.text} before {place.text}", put(Step("test", (leaf, place)))
        if "revise" in space.operators:
            yield "revise", f"review and revise {place.text}", put(Step("revise", (Step("review", (place,)),)))
        for name in ("format", "extract"):
            if name in space.operators:
                yield name, f"{name} {place.text}", put(Step(name, (place,)))
        if "ensemble" in space.operators:
            yield "ensemble", f"vote over {COPIES} of {place.text}", put(Step("ensemble", (place,) * COPIES))
        yield from _inside(place, put, space)


def _inside(place: Step, put: Callable[[Step], Step], space: Space) -> Iterator[tuple[str, str, Step]]:
    """Edits of an operator that has inputs."""
    for inner in _unwrapped(place):
        yield "unwrap", f"{inner.text} alone in place of {place.operator}", put(inner)
    if place.operator != "ensemble":
        return
    for more in dict.fromkeys((*place.inputs, *space.leaves)):
        yield "items", f"one more vote, {more.text}", put(replace(place, inputs=(*place.inputs, more)))
    for number, fewer in enumerate(place.inputs):
        rest = place.inputs[:number] + place.inputs[number + 1 :]
        yield "items", f"one vote less, {fewer.text}", put(replace(place, inputs=rest))


def _unwrapped(place: Step) -> tuple[Step, ...]:
    """The workflows inside of an operator; a review goes with its revision."""
    return place.inputs[0].inputs if place.operator == "revise" else place.inputs


def _places(step: Step, put: Callable[[Step], Step]) -> Iterator[tuple[Step, Callable[[Step], Step]]]:
    """Every place of a workflow that can hold another, with a function that puts something else there."""
    yield step, put
    if step.operator == "revise":
        review = step.inputs[0]
        yield from _places(
            review.inputs[0], lambda inner: put(replace(step, inputs=(replace(review, inputs=(inner,)),)))
        )
        return
    for number, inner in enumerate(step.inputs):

        def put_inside(changed: Step, number: int = number) -> Step:
            return put(replace(step, inputs=(*step.inputs[:number], changed, *step.inputs[number + 1 :])))

        yield from _places(inner, put_inside)
