"""What a judge that learnt from likes says of a reply: sigmoid of its score, in (0, 1). See judges/engagement.py.

It serves only after an audit in which its text score named the more liked of two replies to an unseen post more often than chance.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from relgrad.core.errors import RelgradError
from relgrad.core.protocols import Reward
from relgrad.core.settings import NamesFiles, Strict
from relgrad.core.types import Output, Prompt, Score
from relgrad.judges.engagement import FILE, EngagementJudge
from relgrad.networks.weights.folder import newest
from relgrad.rewards._columns import column, unscored


class Settings(Strict):
    """`judge`: the folder of a judge or its stage, or `stage:LABEL` for the judge of a stage of the same recipe."""

    judge: Annotated[str, NamesFiles()]
    min_accuracy: float = Field(0.5, ge=0, lt=1, description="what the lower end of its accuracy must be above")


def build(settings: Settings) -> Reward:
    """Raises RelgradError for a folder without such a judge, and for one that was not audited or not well enough."""
    place = newest(Path(settings.judge))
    if not (place / FILE).is_file():
        raise RelgradError(
            f"reward 'engagement': {settings.judge!r} has no {FILE}; give the folder of an engagement judge"
        )
    judge = EngagementJudge(json.loads((place / FILE).read_text(encoding="utf-8"))["hidden"])
    judge.load(place)
    low = judge.audit_found.get("accuracy_low")
    if low is None or low <= settings.min_accuracy:
        audit = "was never audited" if low is None else f"names the more liked reply in at least {low:.3f} of the pairs"
        raise RelgradError(
            f"reward 'engagement': judge {settings.judge} {audit}; min_accuracy={settings.min_accuracy} asks for more. Train it "
            "longer, or on more posts"
        )

    def engagement(prompt: Prompt, outputs: Sequence[Output]) -> list[Score]:
        post = column(prompt, "tweet", "engagement")
        texts = [output.text if output.text.strip() else "" for output in outputs]
        if not all(texts):
            return [unscored("an empty reply") if not text else score(post, [text])[0] for text in texts]
        return score(post, texts)

    def score(post: str, texts: Sequence[str]) -> list[Score]:
        with torch.no_grad():
            values = judge.score([post] * len(texts), texts).sigmoid().tolist()
        return [Score(value) for value in values]

    return engagement
