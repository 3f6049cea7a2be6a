"""What a reward answers for one group: a score for each completion, or the reason why there are none."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relgrad.core.errors import RelgradError
from relgrad.core.secrets import hide_known
from relgrad.core.types import Output, Prompt, Score
from relgrad.rewards._calling import read_scores
from relgrad.rewards._deadline import Hung


@dataclass(frozen=True)
class Group:
    """One prompt, and the completions that are compared."""

    prompt: Prompt
    outputs: Sequence[Output]


@dataclass(frozen=True)
class Unanswered:
    """Why a group has no scores.

    trace  the traceback from the reward's own code on, for people
    hung   whether the call outlasted its deadline
    """

    why: str
    trace: str = ""
    hung: bool = False


class Running(Exception):
    """An earlier call of the reward that outlasted its deadline has not ended, so the reward is not called."""


Answer = list[Score] | Unanswered


def answer_of(name: str, call: Callable[[], Any], parts: Sequence[dict[str, float]], seconds: float) -> Answer:
    """Make a call and read what it returns; `parts` is what it logs, one mapping per completion.

    Raises RelgradError for a mistake that would not go away by itself: a missing column, the wrong number of values, no numbers.
    """
    try:
        scores = read_scores(name, call(), len(parts))
    except (RelgradError, KeyboardInterrupt):
        raise
    except Hung:
        return hung(seconds)
    except Running:
        return Unanswered(
            "not called: its call that gave no answer in time has not ended, and a reward does not run beside itself "
            "(isolate: process ends such calls)"
        )
    except BaseException as error:  # SystemExit and the like must not end the run either
        frames = _frames(error)
        return Unanswered(hide_known(_reason(error, frames)), hide_known("".join(traceback.format_list(frames[-6:]))))
    return [score._replace(parts={**logged, **score.parts}) for score, logged in zip(scores, parts, strict=True)]


def hung(seconds: float) -> Unanswered:
    """The answer of a reward that gave none in time."""
    return Unanswered(f"no answer within {seconds:g} s", hung=True)


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    """The traceback from the reward's own code on."""
    frames = traceback.extract_tb(error.__traceback__)
    folder = Path(__file__).parent
    own_frames = [
        i for i, f in enumerate(frames) if Path(f.filename).parent == folder and Path(f.filename).name.startswith("_")
    ]
    return frames[own_frames[-1] + 1 :] if own_frames else list(frames)


def _reason(error: BaseException, frames: Sequence[traceback.FrameSummary]) -> str:
    """The exception's type, message and the line of the reward that it passed through."""
    where = f" ({Path(frames[0].filename).name}:{frames[0].lineno} in {frames[0].name})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"
