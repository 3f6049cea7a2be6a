"""The share of the masked positions that got the id that was hidden there."""

from __future__ import annotations

from collections.abc import Sequence

from relgrad.core.errors import RelgradError
from relgrad.core.protocols import Reward
from relgrad.core.settings import Strict
from relgrad.core.types import Output, Prompt, Score
from relgrad.rewards._columns import column, unscored
from relgrad.rewards._decisions import decisions

PARTS = {"all_right": "1 where every masked position is right"}
"""What the parts of a score mean."""


class Settings(Strict):
    """`column` holds the true ids, one per position of the masked text.

    per_decision  every masked position is scored by itself too; false where a decision is no single one (kind unmasking)
    """

    column: str = "truth_ids"
    per_decision: bool = True


def build(settings: Settings) -> Reward:
    """Scores are in [0, 1]; the part `all_right` is 1 where every position is right. Every decision scores 1 or 0.

    A prompt without a masked position, or whose true ids are None, is unscored.
    """

    def hidden(prompt: Prompt, outputs: Sequence[Output]) -> list[Score]:
        positions = decisions(prompt, outputs, "hidden")
        truth = column(prompt, settings.column, "hidden")
        if truth is None:
            return [unscored(f"column {settings.column!r} is None")] * len(outputs)
        if not positions:
            return [unscored("no position is masked")] * len(outputs)
        if len(truth) != len(prompt.columns["masked_ids"]):
            raise RelgradError(
                f"reward 'hidden': prompt {prompt.id} has {len(truth)} true ids in {settings.column!r} for "
                f"{len(prompt.columns['masked_ids'])} masked_ids; they must be as many"
            )
        scores = [_score([float(output.ids[p] == truth[p]) for p in positions]) for output in outputs]
        return scores if settings.per_decision else [score._replace(per_decision=()) for score in scores]

    return hidden


def _score(right: list[float]) -> Score:
    return Score(sum(right) / len(right), {"all_right": float(all(right))}, per_decision=tuple(right))
