"""What becomes of a workflow: proposers of edits. Each says, where it can, how likely its proposal was."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pydantic import Field

from relgrad.backends.protocol import CallFailed, Request
from relgrad.core.errors import RelgradError
from relgrad.core.randomness import derived
from relgrad.core.settings import Component, Strict
from relgrad.environments.workflows import language
from relgrad.environments.workflows.edits import Space, neighbours
from relgrad.environments.workflows.language import NoWorkflow, Step, parse
from relgrad.environments.workflows.operators import Ask
from relgrad.environments.workflows.problem import Problem
from relgrad.environments.workflows.prompts import PROMPTS
from relgrad.search.prior import Prior, types_of
from relgrad.search.tree import Node, Tree


@dataclass(frozen=True)
class Proposal:
    """An edited workflow.

    logp        nats, of this edit among all that were possible when it was drawn; None where nobody knows
    prior       P of the node: how likely the edit is whatever was found already; 1 where nobody knows
    completion  what a language model wrote
    """

    step: Step
    words: str
    logp: float | None
    prior: float = 1.0
    completion: str = ""


@dataclass(frozen=True)
class Rejected:
    """A proposal that came to nothing, and why: no workflow, or one that is known."""

    completion: str
    why: str


class NoReply(Exception):
    """Every question for a better workflow failed; the message says why. `requests` are the questions."""

    def __init__(self, reason: str, requests: Sequence[Request]) -> None:
        super().__init__(reason)
        self.requests = tuple(requests)


class Proposer(Protocol):
    """Proposes edits. What it proposes is a function of the tree and the seed."""

    async def propose(self, tree: Tree, node: Node, seed: int) -> tuple[Proposal | None, Sequence[Rejected]]:
        """A workflow that the tree does not have, and what was rejected before it; None where there was nothing (any more)."""
        ...


# ---------------------------------------------------------------------- edits of the grammar


class GrammarSettings(Strict):
    """All edits of one place; see environments/workflows/edits.py."""

    operators: tuple[str, ...] = Space.operators
    prompts: tuple[str, ...] = Space.prompts
    max_size: int = Field(Space.max_size, ge=1, le=language.LARGEST)


def space_of(settings: GrammarSettings) -> Space:
    """The workflows that edits lead to. Raises RelgradError for an operator or prompt that there is not."""
    for name, known, what in (
        (settings.operators, language.OPERATORS, "operators"),
        (settings.prompts, PROMPTS, "prompts"),
    ):
        if unknown := [one for one in name if one not in known]:
            raise RelgradError(f"proposer.{what}: no {unknown[0]!r}; there are {', '.join(known)}")
    space = Space(settings.operators, settings.prompts, settings.max_size)
    if not space.leaves:
        raise RelgradError("proposer.operators: without generate or program there is no workflow")
    return space


class Grammar:
    """Draws an edit that leads to a new workflow, by the edits' probabilities, or by what a learned prior makes of them."""

    def __init__(self, space: Space, prior: Prior | None = None) -> None:
        self.space, self.prior = space, prior

    async def propose(self, tree: Tree, node: Node, seed: int) -> tuple[Proposal | None, Sequence[Rejected]]:
        """See Proposer. None: every edit of the workflow is in the tree."""
        edits = neighbours(node.step, self.space)
        new = {step: edit for step, edit in edits.items() if not tree.has(step)}
        if not new:
            return None, ()
        priors = {step: edit.probability for step, edit in edits.items()}
        if self.prior is not None:
            priors = self.prior.weighted(node.step, priors, types_of(tree.types))
        chances = [priors[step] for step in new]
        step = random.Random(derived(seed, "edit")).choices(list(new), chances)[0]
        logp = math.log(priors[step] / math.fsum(chances))
        return Proposal(step, new[step].words, logp, priors[step]), ()


# ---------------------------------------------------------------------- ideas of a language model


class ModelSettings(Strict):
    """A language model that is shown a workflow, its failures and earlier edits, and writes another.

    backend   who writes; null: the back end that solves
    attempts  questions until a new workflow comes; then the workflow is left alone
    shown     failures, successes and earlier workflows in the question, of each so many
    """

    backend: Component | None = None
    attempts: int = Field(3, ge=1)
    shown: int = Field(3, ge=0)
    temperature: float = Field(1.0, ge=0)
    max_tokens: int = Field(256, ge=1)


LANGUAGE = "\n".join((language.__doc__ or "").split("\n\n")[1].splitlines())
"""The grammar, as the language's own page has it."""
MARK = "workflow:"

QUESTION = """You improve workflows that answer questions with a language model. A workflow is one expression:

{language}

The prompts {prompts} have names; others are strings. Operators cost calls.

The present workflow, with score {score}:
{workflow}

{experience}
Change one detail so that the score rises. End with one line: `workflow:` and the new workflow."""


class Model:
    """Asks a language model for a better workflow."""

    def __init__(self, settings: ModelSettings, ask: Ask, problems: Sequence[Problem]) -> None:
        self.settings, self.ask = settings, ask
        self.problems = {problem.id: problem for problem in problems}

    async def propose(self, tree: Tree, node: Node, seed: int) -> tuple[Proposal | None, Sequence[Rejected]]:
        """See Proposer. Raises CallFailed where every other call would fail too, and NoReply where all attempts failed."""
        rejected: list[Rejected] = []
        failed: list[Request] = []
        for attempt in range(self.settings.attempts):
            request = Request(
                ({"role": "user", "content": self.question(tree, node)},),
                max_tokens=self.settings.max_tokens,
                temperature=self.settings.temperature,
                seed=derived(seed, "idea", attempt),
                about={"operator": "propose"},
            )
            try:
                reply = await self.ask(request)
                step = parse(_written(reply.text))
            except CallFailed as failure:
                if failure.fatal:
                    raise
                rejected.append(Rejected("", str(failure)))
                failed.append(request)
                continue
            except NoWorkflow as error:
                rejected.append(Rejected(reply.text, str(error)))
                continue
            if tree.has(step):
                rejected.append(Rejected(reply.text, f"known already, as workflow {tree.number_of(step)}"))
                continue
            return Proposal(step, "the model's idea", reply.logp, completion=reply.text), rejected
        if len(failed) == self.settings.attempts:
            raise NoReply(f"no reply to a question for a better workflow: {rejected[-1].why}", failed)
        return None, rejected

    def question(self, tree: Tree, node: Node) -> str:
        """The text that the model is asked; it tells what failed, what edits helped and what edits did not."""
        return QUESTION.format(
            language=LANGUAGE,
            prompts=", ".join(PROMPTS),
            score=f"{node.mean:.3f}",
            workflow=node.step.text,
            experience="\n".join(filter(None, [self._failures(node), self._edits(tree, node)])),
        )

    def _failures(self, node: Node) -> str:
        wrong = [trial for trial in node.trials.values() if trial.outcome.right == 0][: self.settings.shown]
        lines = [
            f"- {self.problems[trial.problem].text[:300]!r}: it answered {trial.outcome.answer[:60]!r}, right is "
            f"{self.problems[trial.problem].answer[:60]!r}"
            for trial in wrong
        ]
        return "\n".join(["Where it was wrong:", *lines, ""]) if lines else ""

    def _edits(self, tree: Tree, node: Node) -> str:
        """Of the workflow's children with a score, the best and the worst, as what to build on and what to leave."""
        children = sorted((c for c in map(tree.nodes.__getitem__, node.children) if c.values), key=lambda c: -c.mean)
        better = [c for c in children if c.mean > node.mean][: self.settings.shown]
        worse = [c for c in reversed(children) if c.mean <= node.mean][: self.settings.shown]
        parts: Mapping[str, list[Node]] = {"Edits that helped:": better, "Edits that did not help:": worse}
        lines = []
        for head, nodes in parts.items():
            if nodes:
                lines += [head, *(f"- {other.step.text}: {other.mean:.3f}" for other in nodes), ""]
        return "\n".join(lines)


def _written(text: str) -> str:
    """The workflow in a reply: behind the last `workflow:`, else the last line."""
    _, mark, rest = text.rpartition(MARK)
    lines = (rest if mark else text).strip().strip("`").strip().splitlines()
    if not lines:
        return ""
    return (lines[0] if mark else lines[-1]).strip().strip("`")
