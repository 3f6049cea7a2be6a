r"""Another reward, asked about the drafts on the way as well: credit for single steps of a policy with `drafts: true`.

With r_0 .. r_D what that reward says of a completion's drafts (before the first decision, and after each of D), decision d scores

    to_go  r_D - r_{d-1}:                             how much better the end is than the draft before the decision
    mdpo   (r_d - r_{d-1}) + mean of r_{d+1} .. r_D:  gain and later drafts (MDPO, arXiv:2508.13148); of the last, its gain alone

`to_go` leaves the objective as it is: r_{d-1} is known before the decision, and such a baseline changes the variance of the
gradient and not its mean. `mdpo` also rewards good drafts for their own sake, which is another objective. The score of the
completion is r_D in both. Scores are compared decision by decision (`grpo: {credit: decision}`). MDPO's loss on predictions that
were not written is not taken over: log-probabilities are those of the decisions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal

from relgrad.core import registry
from relgrad.core.errors import RelgradError
from relgrad.core.protocols import Reward
from relgrad.core.settings import Component, Strict, settings_of
from relgrad.core.types import Output, Prompt, Score
from relgrad.rewards._calling import Caller, read_scores

Weighting = Literal["to_go", "mdpo"]


class Settings(Strict):
    """`of` is the reward that is asked, a section like those of `rewards`: {kind: puzzles}; `weighting` is described above."""

    of: Component
    weighting: Weighting = "to_go"


def build(settings: Settings) -> Reward:
    """Raises RelgradError for a reward that cannot be built, or is a coroutine."""
    kind, where = settings.of.kind, "reward 'drafts': of"
    module: Any = registry.find("rewards", kind)
    return of(module.build(settings_of(settings.of, module.Settings, where)), kind, settings.weighting)


def of(reward: Callable[..., Any], name: str, weighting: Weighting) -> Reward:
    """`reward` with scores per decision. It is asked about each text once. Raises RelgradError for completions without drafts."""
    caller = Caller(name, reward)
    if caller.is_async:
        raise RelgradError(
            f"reward drafts: of {name!r} is a coroutine; only a reward that answers at once can be asked about drafts"
        )

    def drafts(prompt: Prompt, outputs: Sequence[Output]) -> list[Score]:
        if any(not output.drafts for output in outputs):
            raise RelgradError(
                "reward drafts: these completions have no drafts. Set policy.drafts: true (policies of kind unmasking)"
            )
        texts = list(dict.fromkeys(text for output in outputs for text in output.drafts))
        call, logged = caller.bind(prompt, [Output(text) for text in texts], step=0)
        scores = read_scores(name, call(), len(texts))
        score_of = {
            text: score._replace(parts={**parts, **score.parts})
            for text, score, parts in zip(texts, scores, logged, strict=True)
        }
        return [
            score_of[output.text]._replace(
                per_decision=by_decision([score_of[text].value for text in output.drafts], weighting)
            )
            for output in outputs
        ]

    return drafts


def by_decision(value_D1: Sequence[float], weighting: Weighting) -> tuple[float, ...]:
    """The score of each of D decisions, from what the D + 1 drafts are worth; NaN where one that it needs is unscored."""
    if weighting == "to_go":
        return tuple(value_D1[-1] - before for before in value_D1[:-1])
    gains = [after - before for before, after in pairwise(value_D1)]
    later = [value_D1[d + 2 :] for d in range(len(gains))]
    return tuple(gain + (math.fsum(rest) / len(rest) if rest else 0.0) for gain, rest in zip(gains, later, strict=True))
