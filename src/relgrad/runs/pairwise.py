"""The pairwise judge of a suite: every contender's completions beside the first one's, judged by a back end in both orders."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from relgrad.backends.protocol import NOTHING, Backend, CallFailed, Reply, Request
from relgrad.core import registry
from relgrad.core.errors import RelgradError
from relgrad.core.secrets import require_references
from relgrad.core.settings import settings_of
from relgrad.evaluation.answers import Answers
from relgrad.evaluation.pairwise import PairwiseSettings, preference, question, summary, verdict

Key = tuple[int, str]
"""The id and the text of a prompt."""
WHERE = "evaluation.suite.pairwise.backend"


class Pair(NamedTuple):
    """The completions of one prompt by the first contender and another one, of one training each."""

    prompt: Key
    first: str
    other: str


def backend_of(settings: PairwiseSettings) -> Backend:
    """The judge, not asked yet. Raises RelgradError for an unknown kind, a bad setting, or a secret that is written out."""
    require_references(settings.backend.options, WHERE)
    module = registry.find("backends", settings.backend.kind)
    backend: Backend = module.build(settings_of(settings.backend, module.Settings, WHERE), 0)
    return backend


def duels(settings: PairwiseSettings, groups: Sequence[Sequence[Sequence[Answers]]]) -> dict[str, Any]:
    """What the judge says of every contender against the first, as plain data; `groups` has the answers of all trainings.

    The first completion of every prompt counts; trainings are paired in their order, and a prompt counts once, by the
    mean of its pairs. Raises RelgradError where the judge cannot be asked at all.
    """
    backend = backend_of(settings)
    pairs = [_pairs(groups[0], other, settings.prompts) for other in groups[1:]]
    return asyncio.run(_judged(settings, backend, pairs))


async def _judged(settings: PairwiseSettings, backend: Backend, pairs: Sequence[Sequence[Pair]]) -> dict[str, Any]:
    usage, rows = NOTHING, []
    try:
        for own in pairs:
            requests = [
                Request(question(settings.instruction, *texts), settings.max_tokens, temperature=0.0)
                for (_, prompt), first, other in own
                for texts in ((prompt, first, other), (prompt, other, first))
            ]
            answers = await asyncio.gather(*(_ask(backend, request) for request in requests))
            preferences: dict[Key, list[float]] = {pair.prompt: [] for pair in own}
            failed = 0
            for pair, forward, backward in zip(own, answers[::2], answers[1::2], strict=True):
                if forward is None or backward is None:
                    failed += 1
                    preferences[pair.prompt].append(math.nan)
                else:
                    preferences[pair.prompt].append(preference(verdict(forward.text), verdict(backward.text)))
            for reply in answers:
                usage = usage if reply is None else usage.plus(reply.usage)
            rows.append(summary(list(preferences.values()), failed))
    finally:
        await backend.close()
    return {"judge": backend.identity, "rows": [None, *rows], "usage": usage._asdict()}


async def _ask(backend: Backend, request: Request) -> Reply | None:
    """The reply; None for a call that failed. Raises RelgradError where all others would fail too."""
    try:
        return await backend.generate(request)
    except CallFailed as error:
        if error.fatal:
            raise RelgradError(f"{WHERE}: {error}") from None
        return None


def _pairs(first: Sequence[Sequence[Answers]], other: Sequence[Sequence[Answers]], count: int) -> list[Pair]:
    """The prompts that both were asked, with the first completion of each."""
    pairs = []
    for own, theirs in zip(first, other, strict=False):
        text_of, other_text_of = (
            {(one.prompt.id, one.prompt.text): one.texts[0] for one in answers} for answers in (own, theirs)
        )
        pairs += [
            Pair(key, text_of[key], other_text_of[key])
            for key in [key for key in text_of if key in other_text_of][:count]
        ]
    return pairs
