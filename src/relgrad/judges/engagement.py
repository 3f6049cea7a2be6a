r"""A judge of replies to posts that learns from likes, of two replies to one post at a time.

    P(reply i has more likes than j) = sigmoid(f_i - f_j + c · (z_i - z_j)),     z = (ln followers, ln delay)

f is a small network on the vectors of reply and post (MiniLM, frozen); c are two numbers. A post's reach is the same for both
replies, and what followers and being early explain goes into c: f is left with what the text explains (Bradley and Terry 1952, with
covariates). f is known up to a constant for each post; where a single number is wanted it is sigmoid(f).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn

from relgrad.core.errors import RelgradError
from relgrad.core.randomness import Randomness
from relgrad.core.settings import Strict
from relgrad.core.types import Example, Prompt, SupervisedLoss
from relgrad.evaluation.statistics import bootstrap_mean
from relgrad.networks.weights import files
from relgrad.networks.weights.folder import newest
from relgrad.text.embedding import embed

FILE, WEIGHTS = "engagement.json", "engagement.safetensors"
LEAST_POSTS = 8
"""Validation posts with replies of different likes that an audit needs."""


class Settings(Strict):
    """`hidden` is the width of the network's one hidden layer."""

    hidden: int = Field(32, ge=1)


class Replies(NamedTuple):
    """Replies to one post: texts, likes [K], what is controlled for [K, 2], and their quality [K] where it is known (else NaN)."""

    post: str
    texts: Sequence[str]
    likes_K: Tensor
    control_K2: Tensor
    quality_K: Tensor


def replies_of(prompt: Prompt) -> Replies:
    """The replies in the column `replies`, those without likes left out. Raises RelgradError where there is no such column."""
    if "replies" not in prompt.columns or "tweet" not in prompt.columns:
        raise RelgradError(
            "judge 'engagement' needs the columns `tweet` and `replies`; the task `replies` in phase grpo has them"
        )
    rows = [row for row in prompt.columns["replies"] if row.get("reply_likes") is not None]
    return Replies(
        prompt.columns["tweet"],
        [row["reply"] for row in rows],
        torch.tensor([float(row["reply_likes"]) for row in rows]),
        torch.tensor([_controls(row) for row in rows]).reshape(len(rows), 2),
        torch.tensor([float(row.get("quality", math.nan)) for row in rows]),
    )


def _controls(row: Mapping[str, Any]) -> tuple[float, float]:
    """ln followers and ln seconds, around usual ones; 0 where the row has none."""
    followers, delay = row.get("reply_author_followers"), row.get("reply_time_diff_seconds")
    return (
        0.0 if followers is None else math.log((followers + 1) / 1000),
        0.0 if delay is None else math.log((max(delay, 0) + 1) / 3600),
    )


def build(settings: Settings, seed: int, policy: Any, start: Path | None = None) -> EngagementJudge:
    """The policy is not looked at: what is judged is what people wrote."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        judge = EngagementJudge(settings.hidden)
    if start is not None:
        judge.load(start)
    return judge


class EngagementJudge:
    """A protocols.Trainable and protocols.Audited. `audit_found` is what the last audit found, empty before."""

    def __init__(self, hidden: int, width: int = 384) -> None:
        self.hidden = hidden
        self.network = nn.Sequential(nn.Linear(2 * width, hidden), nn.Tanh(), nn.Linear(hidden, 1))
        self.control_2 = nn.Parameter(torch.zeros(2))
        self.audit_found: dict[str, Any] = {}
        self._vectors: dict[str, Tensor] = {}

    def score(self, posts: Sequence[str], texts: Sequence[str]) -> Tensor:
        """f [N], differentiable, of every text as a reply to the post beside it."""
        new = [text for text in dict.fromkeys([*posts, *texts]) if text not in self._vectors]
        self._vectors.update(zip(new, embed(new), strict=True))
        post_ND, text_ND = (torch.stack([self._vectors[t] for t in each]).clone() for each in (posts, texts))
        return self.network(torch.cat([text_ND, post_ND * text_ND], -1) * math.sqrt(text_ND.shape[1]))[:, 0]

    def supervised_loss(self, examples: Sequence[Example], randomness: Randomness) -> SupervisedLoss:
        """Summed -log P (nats) of which reply has more likes, over all pairs of replies to a post that differ in likes."""
        total, pairs = torch.zeros(()), 0
        for example in examples:
            replies = replies_of(example.prompt)
            more_N, less_N = pairs_of(replies.likes_K)
            if len(more_N):
                f_K = self.score([replies.post] * len(replies.texts), replies.texts)
                logit_K = f_K + replies.control_K2 @ self.control_2
                total = total - nn.functional.logsigmoid(logit_K[more_N] - logit_K[less_N]).sum()
                pairs += len(more_N)
        if not pairs:  # nothing to learn from: a loss of 0 that has a gradient
            total = total + 0 * self.control_2.sum()
        return SupervisedLoss(total, pairs, float(total.detach()))

    def require(self, prompts: Sequence[Prompt]) -> None:
        """Raises RelgradError where too few posts have replies that differ in likes."""
        usable = sum(len(pairs_of(replies_of(prompt).likes_K)[0]) > 0 for prompt in prompts)
        if usable < LEAST_POSTS:
            raise RelgradError(
                f"judge 'engagement': {usable} validation posts have replies of different likes, an audit needs {LEAST_POSTS}"
            )

    @torch.no_grad()
    def audit(
        self, prompts: Sequence[Prompt], generator: torch.Generator, progress: Callable[[int, int], None] | None = None
    ) -> dict[str, Any]:
        """How often the reply with more likes is named, on posts it did not learn from: by text, by followers and delay, by both.

        Means over posts; `accuracy_low` and `accuracy_high` are the 95 % interval of the text's (bootstrap over posts). Where the
        quality is known, `quality_accuracy` is how often the text's score names the better of two replies.
        """
        by_text, by_control, by_both, by_quality = (list[float]() for _ in range(4))
        for number, prompt in enumerate(prompts):
            replies = replies_of(prompt)
            if progress is not None:
                progress(number + 1, len(prompts))
            more_N, less_N = pairs_of(replies.likes_K)
            if not len(more_N):
                continue
            f_K = self.score([replies.post] * len(replies.texts), replies.texts)
            control_K = replies.control_K2 @ self.control_2
            for accuracies, score_K in ((by_text, f_K), (by_control, control_K), (by_both, f_K + control_K)):
                accuracies.append(_named(score_K, more_N, less_N))
            better_N, worse_N = pairs_of(replies.quality_K)
            if len(better_N):
                by_quality.append(_named(f_K, better_N, worse_N))
        self.require(prompts)
        interval = bootstrap_mean(by_text, seed=0)
        self.audit_found = {
            "accuracy": interval.value,
            "accuracy_low": interval.low,
            "accuracy_high": interval.high,
            "accuracy_of_followers_and_delay": sum(by_control) / len(by_control),
            "accuracy_of_all": sum(by_both) / len(by_both),
            "quality_accuracy": sum(by_quality) / len(by_quality) if by_quality else None,
            "posts": len(by_text),
        }
        return dict(self.audit_found)

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield "control_2", self.control_2
        yield from self.network.named_parameters()

    def save(self, folder: Path) -> None:
        """Weights, and what the last audit found."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.detach().contiguous() for name, tensor in self.parameters()}, folder / WEIGHTS)
        (folder / FILE).write_text(json.dumps({"hidden": self.hidden, "audit": self.audit_found}, indent=1) + "\n")

    def load(self, folder: Path) -> None:
        """Raises RelgradError where another or no judge was saved there."""
        place = newest(folder)
        if not (place / WEIGHTS).is_file() or not (place / FILE).is_file():
            raise RelgradError(f"{folder}: no engagement judge there ({WEIGHTS} and {FILE})")
        saved = files.read(place / WEIGHTS)
        for name, tensor in self.parameters():
            if name not in saved or saved[name].shape != tensor.shape:
                raise RelgradError(
                    f"{place / WEIGHTS}: {name} is missing or of another size than hidden={self.hidden} has"
                )
            tensor.data.copy_(saved[name])
        self.audit_found = json.loads((place / FILE).read_text(encoding="utf-8"))["audit"]


def pairs_of(value_K: Tensor) -> tuple[Tensor, Tensor]:
    """(i [N], j [N]) of all pairs with value i above value j; NaN is in none."""
    more_N, less_N = torch.nonzero(value_K[:, None] > value_K[None, :], as_tuple=True)
    return more_N, less_N


def _named(score_K: Tensor, more_N: Tensor, less_N: Tensor) -> float:
    """The share of pairs in which the score is higher where it should be; equal scores count half."""
    gap_N = score_K[more_N] - score_K[less_N]
    return float(((gap_N > 0).float() + 0.5 * (gap_N == 0).float()).mean())
