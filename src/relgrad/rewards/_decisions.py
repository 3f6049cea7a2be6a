"""The decisions of a fill-in completion: the positions that hold the mask in its prompt, in order."""

from __future__ import annotations

from collections.abc import Sequence

from relgrad.core.errors import RelgradError
from relgrad.core.types import Output, Prompt
from relgrad.rewards._columns import column


def decisions(prompt: Prompt, outputs: Sequence[Output], reward: str) -> list[int]:
    """Positions where `masked_ids` holds `mask_id`. Ids that a BERT mask swapped or left alone are none of them.

    Raises RelgradError for a missing column, and for completions that do not have one id per position of the prompt.
    """
    masked, mask_id = column(prompt, "masked_ids", reward), column(prompt, "mask_id", reward)
    if masked is None or mask_id is None:
        raise RelgradError(
            f"reward {reward!r}: prompt {prompt.id} has no masked_ids or no mask_id; use a task of masked text"
        )
    for output in outputs:
        if len(output.ids) != len(masked):
            raise RelgradError(
                f"reward {reward!r}: a completion of prompt {prompt.id} has {len(output.ids)} ids, its masked text "
                f"{len(masked)}; this reward is for policies that fill in masked text (kind fill_in)"
            )
    return [position for position, i in enumerate(masked) if i == mask_id]
