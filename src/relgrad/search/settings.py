"""What a recipe says of a search."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from relgrad.core.settings import Component, NamesFiles, Strict


class Budget(Strict):
    """Hard limits, each of the whole search, its test apart: requests, tokens read and written, seconds of running, money.

    A call that is under way when the seconds have passed is broken off and counts at its worst.
    """

    calls: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    money: float | None = None

    @field_validator("calls", "tokens", "seconds", "money")
    @classmethod
    def _allows_something(cls, limit: float | None) -> float | None:
        if limit is not None and not limit > 0:
            raise ValueError("a budget of 0 or less allows nothing: give more, or leave this limit out")
        return limit

    def within(self, other: Budget) -> bool:
        """Whether no limit allows more than the other's."""
        here, there = vars(self), vars(other)
        return all(limit is None or (here[name] is not None and here[name] <= limit) for name, limit in there.items())


class Selection(Strict):
    """Which workflow is edited next.

    puct:  Q + exploration * P * sqrt(N) / (1 + n), down from the root, to a node with room for another child: fewer than
           widening * N^0.5. `noise` of the root's prior is uniform. `backup`: a node's Q is the mean, or the best, of its subtree
    aflow: mix / n + (1 - mix) * softmax(sharpness * 100 * score), over the first workflow and the best top_k - 1
    """

    rule: Literal["puct", "aflow"] = "puct"
    exploration: float = Field(1.0, ge=0)
    noise: float = Field(0.25, ge=0, le=1)
    widening: float = Field(1.0, gt=0)
    backup: Literal["mean", "max"] = "mean"
    mix: float = Field(0.3, ge=0, le=1)
    sharpness: float = Field(0.2, ge=0)
    top_k: int = Field(4, ge=1)


class Trials(Strict):
    """How often a workflow is executed.

    first    executions of a new workflow, and of every repetition: a workflow that seems better than the best is repeated, and the
             best with it, until the means are clear of each other
    most     executions after which a workflow is not repeated any more
    errors   standard errors around a mean within which it is not clear
    confirm  after every new workflow, repeat the one that is thought best
    share    equal parts of workflows share their replies: the third vote of one is the third vote of all, and is asked once
    """

    first: int = Field(2, ge=1)
    most: int = Field(24, ge=1)
    errors: float = Field(1.0, gt=0)
    confirm: bool = True
    share: bool = True

    @model_validator(mode="after")
    def _in_order(self) -> Trials:
        if self.most < self.first:
            raise ValueError(f"trials.most={self.most} is less than trials.first={self.first}")
        return self


class Search(Strict):
    """A recipe's `search` section.

    problems     kind: noisy or file
    scope        one workflow for all problems, of which `test_share` is kept for the test, or one for each of all problems
    start        workflows, or files with one, that the search begins with; the first is the root
    score        right answers less `cost_weight` times the cost of an execution, in `cost`
    iterations   workflows that are tried at the most, of each tree
    patience     end when so many new workflows in a row were clearly worse than the best
    programs     what runs programs that a model wrote: a calculator of one expression, or Python in the sandbox
    edit_prior   a file of `relgrad workflow prior`: edits of the grammar are drawn by what helped in earlier searches
    """

    backend: Component
    problems: Component
    proposer: Component = Component(kind="grammar")
    scope: Literal["dataset", "problem"] = "dataset"
    start: tuple[str, ...] = Field(("generate()",), min_length=1)
    test_share: float = Field(0.5, gt=0, lt=1)
    test_repeats: int = Field(1, ge=0)
    cost: Literal["money", "calls", "tokens"] = "money"
    cost_weight: float = Field(0.0, ge=0)
    selection: Selection = Selection()
    trials: Trials = Trials()
    budget: Budget = Budget()
    iterations: int = Field(1000, ge=1)
    patience: int | None = Field(None, ge=1)
    concurrency: int = Field(16, ge=1)
    temperature: float = Field(1.0, ge=0)
    max_tokens: int = Field(512, ge=1)
    programs: Literal["arithmetic", "sandbox"] = "arithmetic"
    edit_prior: Annotated[Path | None, NamesFiles()] = None
