"""What trained judges say of the completed text: the expected share of the refilled positions that is right.

Several judges are an ensemble: their mean, or the most doubtful one. A judge serves only after its audit: one whose score
does not go along with the truth *within groups of one prompt* has nothing to teach, however well it tells easy
prompts from hard ones. With `refit_every`, the judges go on learning from what the policy writes by then.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.randomness import Draws
from relgrad.core.settings import NamesFiles, Strict
from relgrad.core.types import Output, Prompt, Rollouts, Score, Stop
from relgrad.judges.network import Judge, Refilled
from relgrad.networks.weights import device
from relgrad.networks.weights.seeded_dropout import seeded
from relgrad.rewards._columns import column

PARTS = {"disagreement": "standard deviation of the judges' scores"}
"""What the parts of a score mean."""


class Settings(Strict):
    """`judges`: folders of judges, original .pt files, or `stage:LABEL` for the judge of a stage of the same recipe."""

    judges: Annotated[tuple[str, ...], NamesFiles()] = Field(min_length=1)
    combine: Literal["mean", "min"] = "mean"
    per_decision: bool = Field(True, description="false where a decision is no single masked position (kind unmasking)")
    min_within_group: float = Field(0.25, description="least within-group correlation with the truth in the audit")
    require_audit: bool = True
    refit_every: int = Field(0, ge=0, description="GRPO steps between refits on the current policy; 0: never")
    refit_steps: int = Field(10, ge=1)
    refit_batch_size: int = Field(32, ge=1)
    refit_learning_rate: float = Field(3e-4, gt=0)
    device: str = "auto"


def build(settings: Settings) -> JudgeReward:
    """Raises RelgradError for a judge that is missing, has no audit, or did not pass it."""
    judges = []
    for source in settings.judges:
        if source.startswith("stage:"):
            raise RelgradError(
                f"judges: {source!r} names a stage of the recipe that runs; outside of a run give the judge's folder, or run "
                "the recipe and name the run (runs/NAME) in its place"
            )
        judge = Judge.load(Path(source))
        if settings.require_audit:
            check_audit(judge, source, settings.min_within_group)
        judge.model.to(device.choose(settings.device))
        judges.append(judge)
    first = judges[0].vocabulary
    for source, judge in zip(settings.judges[1:], judges[1:], strict=True):
        first.require(judge.vocabulary.fingerprint, f"judge {source}")
    return JudgeReward(judges, settings)


def check_audit(judge: Judge, source: str, least: float) -> None:
    """Raise RelgradError unless the judge's audit found at least this within-group correlation."""
    correlation = judge.audit.get("within_group_correlation")
    if correlation is None:
        raise RelgradError(
            f"judge {source} was never audited. Train it in a stage of kind judge, which ends with an audit, or run "
            f"`relgrad audit {source} --generator RUN` (with --out FOLDER for a .pt file); require_audit: false trusts it blindly"
        )
    if math.isnan(correlation) or correlation < least:
        low, high = (judge.audit.get(f"within_group_{end}", math.nan) for end in ("low", "high"))
        raise RelgradError(
            f"judge {source} may not reward: within groups of one prompt its score goes along with the truth by {correlation:.3f} "
            f"[{low:.3f}, {high:.3f}], min_within_group asks for {least}. {_advice(judge, least)}"
        )


def _advice(judge: Judge, least: float) -> str:
    """What helps a judge that did not pass: a better generator, a longer training of the judge, a larger audit."""
    audit, advice = judge.audit, []
    right, by_chance = audit.get("mean_share_right"), audit.get("most_frequent_share")
    if right is not None and by_chance is not None:
        compared = f"and {audit['most_frequent']!r} in every hole would be right in {by_chance:.1%}"
        advice.append(f"The generator is right in {right:.1%} of the holes, {compared}.")
        if right < by_chance:
            advice.append("It has learnt little, so there is little to tell apart: train it several times as long.")
    positions = "" if judge.by_position else " and let it score positions (head: positions)"
    advice.append(f"Train the judge longer{positions}, or lower min_within_group.")
    if audit.get("within_group_high", -math.inf) >= least:
        advice.append(
            f"The interval holds {least}: an audit of more prompts than these {audit['prompts']} would tell (audit_prompts of the "
            "judge, held_out_size of the task)"
        )
    return " ".join(advice).removesuffix(".")


class JudgeReward:
    """A reward in relgrad's own form; a protocols.Learner, which learns where `refit_every` says so.

    While `fixed`, the judges speak as they were audited: scores before and after training are then of the same judge.
    """

    def __init__(self, judges: Sequence[Judge], settings: Settings) -> None:
        self.judges, self.settings = tuple(judges), settings
        self.learns = settings.refit_every > 0
        self.audited = tuple(copy.deepcopy(judge) for judge in judges) if self.learns else self.judges
        self.fixed = False

    def __call__(self, prompt: Prompt, outputs: Sequence[Output]) -> list[Score]:
        column(prompt, "masked_ids", "judge")
        self._require_vocabulary(prompt)
        rollouts = as_rollouts(prompt, outputs)
        read = [(judge, judge.read(rollouts)) for judge in (self.audited if self.fixed else self.judges)]
        judged = [judge.scores(texts) for judge, texts in read]
        score_JB = torch.stack([score for score, _ in judged])
        total_B = score_JB.mean(0) if self.settings.combine == "mean" else score_JB.amin(0)
        by_position = [(p, texts) for (_, p), (_, texts) in zip(judged, read, strict=True) if p is not None]
        details = self._per_decision(by_position) if len(by_position) == len(judged) else None
        details = details if self.settings.per_decision else None
        return [
            Score(
                float(total_B[row]),
                {"disagreement": float(score_JB[:, row].std())} if len(judged) > 1 else {},
                per_decision=tuple(details[row].tolist()) if details is not None else (),
            )
            for row in range(len(outputs))
        ]

    def _require_vocabulary(self, prompt: Prompt) -> None:
        own, of_task = self.judges[0].vocabulary, column(prompt, "vocabulary", "judge")
        if of_task != own.fingerprint:
            raise RelgradError(
                f"judge {self.settings.judges[0]} was trained with another vocabulary ({own}) than that of the task "
                f"({of_task}). Train the judge on text of this task, or give task and policy its `text` and `symbols`"
            )

    def _per_decision(self, by_position: Sequence[tuple[Tensor, Refilled]]) -> Sequence[Tensor]:
        """The judges' probabilities of every refilled position, text by text. Judges may see windows of different widths."""
        p_JN = torch.stack([p_BL[texts.mark_BL] for p_BL, texts in by_position])
        p_N = p_JN.mean(0) if self.settings.combine == "mean" else p_JN.amin(0)
        return p_N.split(by_position[0][1].mark_BL.sum(-1).tolist())

    # ------------------------------------------------------------------ going on learning

    def due(self, step: int) -> bool:
        """Whether the judges are refitted after this GRPO step."""
        return self.learns and step % self.settings.refit_every == 0

    def prompts_wanted(self) -> int:
        """Each of the refit's steps reads a batch of its own."""
        return self.settings.refit_steps * self.settings.refit_batch_size

    def refit(self, policy: Any, prompts: Sequence[Prompt], generator: torch.Generator) -> float:
        """`refit_steps` steps on what the policy fills in by now; returns the mean loss (nats per judged thing).

        Fewer prompts than `prompts_wanted` are taken again from the first on.
        """
        total, count = 0.0, 0
        for judge in self.judges:
            optimizer = torch.optim.AdamW(judge.model.parameters(), lr=self.settings.refit_learning_rate)
            for step in range(self.settings.refit_steps):
                first = step * self.settings.refit_batch_size
                batch = [prompts[(first + i) % len(prompts)] for i in range(self.settings.refit_batch_size)]
                draws = Draws.of(generator, len(batch))
                texts = judge.read(policy.sample(batch, 1, draws))
                judge.model.train()
                with seeded(draws):
                    loss, things = judge.loss(texts)
                (loss / max(things, 1)).backward()
                torch.nn.utils.clip_grad_norm_(judge.model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                total, count = total + float(loss.detach()), count + things
            judge.model.eval()
        return total / max(count, 1)

    def save(self, folder: Path) -> None:
        """The judges as they are by now, one folder each."""
        for number, judge in enumerate(self.judges):
            judge.save(folder / str(number))

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        for number, judge in enumerate(self.judges):
            saved = Judge.load(folder / str(number))
            judge.model.take(saved.model.state_dict(), str(folder))


def as_rollouts(prompt: Prompt, outputs: Sequence[Output]) -> Rollouts:
    """One group's outputs in the form the judge reads, without decisions."""
    nothing = torch.zeros(len(outputs), 0)
    stop: tuple[Stop, ...] = ("eos",)
    return Rollouts(
        (prompt,), torch.zeros(len(outputs), dtype=torch.int64), nothing, nothing.bool(), nothing.long(), tuple(outputs),
        stop * len(outputs), 0, {},
    )  # fmt: skip
