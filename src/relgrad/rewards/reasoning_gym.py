"""The score that a reasoning-gym task's own verifier gives, for prompts of the task kind `reasoning_gym`."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from relgrad.core.errors import RelgradError
from relgrad.core.protocols import Reward
from relgrad.core.settings import Strict
from relgrad.core.types import Output, Prompt, Score
from relgrad.rewards._columns import column, unscored


class Settings(Strict):
    """Which part of the completion is the answer."""

    tag: str | None = Field(None, description="the last <tag>...</tag>; without it, the whole completion, stripped")


def build(settings: Settings) -> Reward:
    """Scores are the verifier's, most in [0, 1], some tasks give partial credit.

    A completion without the tag scores what the verifier gives to no answer (0 in most tasks). One that the verifier
    fails on is unscored, with its exception.
    """
    try:
        from reasoning_gym import create_dataset
        from reasoning_gym.utils import extract_answer
    except ImportError:
        raise RelgradError("reward reasoning_gym needs reasoning-gym; pip install 'relgrad[gym]'") from None
    verifiers: dict[str, Any] = {}

    def verifier(task: str, params: dict[str, Any]) -> Any:
        key = json.dumps([task, params], sort_keys=True, default=repr)
        if key not in verifiers:
            verifiers[key] = create_dataset(task, **copy.deepcopy(params), seed=0, size=1)
        return verifiers[key]

    def score(judge: Any, text: str, entry: dict[str, Any]) -> Score:
        answer = extract_answer(text, tag_name=settings.tag) if settings.tag else text.strip()
        try:
            return Score(float(judge.score_answer(answer, entry)))
        except Exception as error:
            return unscored(f"the verifier failed: {type(error).__name__}: {error}")

    def reasoning_gym(prompt: Prompt, outputs: Sequence[Output]) -> list[Score]:
        judge = verifier(column(prompt, "task", "reasoning_gym"), column(prompt, "params", "reasoning_gym"))
        entry = {name: column(prompt, name, "reasoning_gym") for name in ("question", "answer", "metadata")}
        return [score(judge, output.text, copy.deepcopy(entry)) for output in outputs]

    return reasoning_gym
