"""A judge of refilled text, trained on what a generator refills: which of these positions are right?

Every training text is a held-in stretch of the corpus whose masked positions the generator fills by its own law; a share
`untouched` keeps the true characters (marked as if refilled, and right). Before the judge may reward anything it is
calibrated and audited on held-out text that neither it nor the generator was trained on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from pydantic import Field, ValidationError
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.randomness import Draws, Randomness
from relgrad.core.settings import Strict
from relgrad.core.types import Example, Prompt, Rollouts, SupervisedLoss
from relgrad.evaluation import calibration
from relgrad.evaluation.statistics import bootstrap_mean
from relgrad.judges.network import Judge, Refilled
from relgrad.networks.diffusion_gpt.network import GPT, GPTConfig
from relgrad.networks.weights.seeded_dropout import seeded
from relgrad.text.vocabulary import Vocabulary

AUDIT_PROMPTS = 16
"""Prompts that are refilled and judged at once in an audit."""
LEAST_PROMPTS = 8
"""Half of them calibrate and half examine; with fewer neither says anything."""


class Settings(Strict):
    """`head`: a probability per refilled position, or one for the whole text. `init`: start from the generator's trunk or not."""

    head: Literal["positions", "sequence"] = "positions"
    init: Literal["generator", "random"] = "generator"
    n_layer: int | None = Field(None, ge=1, description="null: as the generator")
    n_head: int | None = Field(None, ge=1)
    n_embd: int | None = Field(None, ge=2)
    dropout: float = Field(0.0, ge=0, lt=1)
    untouched: float = Field(0.1, ge=0, lt=1, description="share of training texts that keep the true characters")
    audit_prompts: int = Field(256, ge=LEAST_PROMPTS, description="held-out prompts of the audit")
    audit_generations: int = Field(16, ge=2, description="completions per prompt of the audit")


def build(settings: Settings, seed: int, policy: Any, start: Path | None = None) -> RefillJudge:
    """A judge for the given generator (a fill-in policy). Raises RelgradError for another kind of policy, or wrong sizes."""
    require_generator(policy)
    if start is not None:
        judge = Judge.load(start)
        judge.vocabulary.require(policy.vocabulary.fingerprint, "the generator")
        return RefillJudge(judge, policy, settings)
    generator: GPT = policy.model
    changed = settings.model_dump(include={"n_layer", "n_head", "n_embd"}, exclude_none=True)
    whole = settings.head == "sequence"
    changed |= {
        "mode": "sequence_scorer" if whole else "token_classifier",
        "marks": not whole,
        "critic": False,
        "dropout": settings.dropout,
        "attention_type": "bidirectional",
        "vocab_size": policy.vocabulary.size,
        "cls_token_id": policy.vocabulary.cls_id if whole else None,
        "block_size": generator.config.block_size + whole,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = GPT(_config(generator.config.model_dump() | changed))
    if settings.init == "generator":
        copy_trunk(generator, model)
    return RefillJudge(Judge(model.to(policy.device), policy.vocabulary), policy, settings)


@runtime_checkable
class Generator(Protocol):
    """A policy that refills masked text by a diffusion GPT, whose trunk a judge may start from."""

    model: GPT
    vocabulary: Vocabulary
    device: torch.device

    def sample(self, prompts: Sequence[Prompt], group_size: int, randomness: Randomness) -> Rollouts: ...


def require_generator(policy: Any) -> None:
    """Raise RelgradError for a policy that does not refill masked text."""
    if not (isinstance(policy, Generator) and isinstance(policy.model, GPT)):
        raise RelgradError(f"judge kind 'refill' judges a fill_in policy, not {type(policy).__name__}")


def _config(values: dict[str, Any]) -> GPTConfig:
    try:
        return GPTConfig.model_validate(values)
    except ValidationError as error:
        raise RelgradError(f"judge: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None


def copy_trunk(source: GPT, target: GPT) -> None:
    """Blocks and embeddings of one network into another. Raises RelgradError where the sizes differ."""
    weights, own = source.transformer.state_dict(), target.transformer.state_dict()
    for name, tensor in weights.items():
        rows = slice(0, tensor.shape[0])
        if own.get(name) is None or own[name][rows].shape != tensor.shape:
            raise RelgradError(
                f"judge.init: generator needs the generator's sizes, but {name} differs; use init: random, or leave "
                "n_layer, n_head and n_embd out"
            )
        own[name][rows] = tensor
    target.transformer.load_state_dict(own)


class RefillJudge:
    """A protocols.Trainable and protocols.Audited: a judge, and the policy whose texts it learns to judge."""

    def __init__(self, judge: Judge, policy: Any, settings: Settings) -> None:
        self.judge, self.policy, self.settings = judge, policy, settings

    def supervised_loss(self, examples: Sequence[Example], randomness: Randomness) -> SupervisedLoss:
        """Summed binary cross-entropy (nats) of the judge on fresh refills of the examples' prompts, and its count."""
        draws = Draws.of(randomness, len(examples))
        rollouts = self.policy.sample([e.prompt for e in examples], 1, draws)
        untouched_B = draws.rand() < self.settings.untouched
        texts = self.judge.read(rollouts, untouched_B)
        self.judge.model.train()
        with seeded(draws):
            loss, count = self.judge.loss(texts)
        self.judge.model.eval()
        return SupervisedLoss(loss, count, float(loss.detach()))

    def parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return ((n, p) for n, p in self.judge.model.named_parameters() if p.requires_grad)

    def save(self, folder: Path) -> None:
        """The judge with its calibration and audit; see judges/network.py."""
        self.judge.save(folder)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote. Raises RelgradError for another network or vocabulary."""
        saved = Judge.load(folder)
        self.judge.vocabulary.require(saved.vocabulary.fingerprint, str(folder))
        self.judge.model.take(saved.model.state_dict(), str(folder))
        self.judge.calibration, self.judge.audit = saved.calibration, saved.audit

    # ------------------------------------------------------------------ audit

    def require(self, prompts: Sequence[Prompt]) -> None:
        """Raise RelgradError for fewer held-out prompts than an audit needs."""
        if len(prompts) < LEAST_PROMPTS:
            raise RelgradError(
                f"an audit needs at least {LEAST_PROMPTS} held-out prompts, the task has {len(prompts)}: raise task.held_out_size "
                "(and task.held_out_fraction, where nothing of the text is held out)"
            )

    def audit(
        self, prompts: Sequence[Prompt], generator: torch.Generator, progress: Callable[[int, int], None] | None = None
    ) -> dict[str, Any]:
        """Calibrate on one half of the held-out prompts, examine on the other; keep the findings with the judge.

        auc                       of refilled positions, right against wrong; for whole texts: untouched against refilled
        calibration_error         expected calibration error, 10 bins; `reliability` has the bins
        mask_ratio_correlation    of a prompt's mean score with its mask ratio; `truth_mask_ratio_correlation`: that of the
                                  share that is really right, for comparison
        within_group_correlation  of score and share right among completions of one prompt: mean over prompts, with its
                                  95 % interval over prompts. This is what a group-relative reward lives on
        most_frequent             the symbol that is hidden most often, and `most_frequent_share`: the share that would be right
                                  with it in every hole. A generator below that share has not learnt much

        Raises RelgradError for fewer than 8 prompts.
        """
        self.require(prompts)
        prompts = prompts[-self.settings.audit_prompts :]  # from the end: evaluations take theirs from the beginning
        self.judge.calibration = (1.0, 0.0)
        half, done = len(prompts) // 2, 0
        fitted: list[Rollouts] = []
        examined: list[Rollouts] = []
        for part, kept in ((prompts[:half], fitted), (prompts[half:], examined)):
            for first in range(0, len(part), AUDIT_PROMPTS):
                batch = part[first : first + AUDIT_PROMPTS]
                kept.append(self.policy.sample(batch, self.settings.audit_generations, generator))
                done += len(batch)
                if progress is not None:
                    progress(done, len(prompts))
        logit_N, target_N = self._cases(fitted)
        self.judge.calibration = calibration.platt(logit_N, target_N)
        self.judge.audit = self._examine(examined)
        return dict(self.judge.audit)

    def _cases(self, batches: Sequence[Rollouts]) -> tuple[np.ndarray, np.ndarray]:
        """(uncalibrated logit, target in [0, 1]) of every refilled position, or of every text."""
        logits, targets = [], []
        for rollouts in batches:
            texts = self.judge.read(rollouts)
            with torch.no_grad():
                logit = self.judge.logits(texts.ids_BL, texts.valid_BL, texts.mark_BL).cpu()
            logits.append(logit[texts.mark_BL] if self.judge.by_position else logit)
            targets.append(texts.right_BL[texts.mark_BL].float() if self.judge.by_position else share_right(texts))
        return torch.cat(logits).double().numpy(), torch.cat(targets).double().numpy()

    def _examine(self, batches: Sequence[Rollouts]) -> dict[str, Any]:
        a, b = self.judge.calibration
        logit_N, target_N = self._cases(batches)
        table = calibration.reliability(1 / (1 + np.exp(-(a * logit_N + b))), target_N)
        texts = [self.judge.read(rollouts) for rollouts in batches]
        each = self.settings.audit_generations
        score_GK = torch.cat([self.judge.scores(t)[0] for t in texts]).double().numpy().reshape(-1, each)
        share_GK = torch.cat([share_right(t) for t in texts]).double().numpy().reshape(-1, each)
        ratio_G = np.array([p.columns["mask_ratio"] for rollouts in batches for p in rollouts.prompts])
        inside = bootstrap_mean(calibration.within_groups(score_GK, share_GK))
        return {
            "auc": calibration.auc(logit_N, target_N)
            if self.judge.by_position
            else self._untouched_auc(batches, score_GK),
            "calibration_error": calibration.expected_calibration_error(table),
            "mask_ratio_correlation": calibration.pearson(score_GK.mean(1), ratio_G),
            "truth_mask_ratio_correlation": calibration.pearson(share_GK.mean(1), ratio_G),
            "within_group_correlation": inside.value,
            "within_group_low": inside.low,
            "within_group_high": inside.high,
            "mean_score": float(score_GK.mean()),
            "mean_share_right": float(share_GK.mean()),
            **self._most_frequent([p for rollouts in batches for p in rollouts.prompts]),
            "prompts": len(ratio_G),
            "generations": each,
            "calibration": [a, b],
            "reliability": [vars(bin) for bin in table],
        }

    def _most_frequent(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """The symbol that is hidden most often in these texts, and the share that it would get right, mean over the texts."""
        mask_id = self.judge.vocabulary.mask_id
        hidden = [
            [
                true
                for true, shown in zip(p.columns["truth_ids"], p.columns["masked_ids"], strict=True)
                if shown == mask_id
            ]
            for p in prompts
        ]
        symbol = Counter(i for ids in hidden for i in ids).most_common(1)[0][0]
        share = np.mean([ids.count(symbol) / len(ids) for ids in hidden])
        return {"most_frequent": self.judge.vocabulary.decode([symbol]), "most_frequent_share": float(share)}

    def _untouched_auc(self, batches: Sequence[Rollouts], score_GK: np.ndarray) -> float:
        """P(an untouched text scores higher than a refilled one)."""
        true = []
        for rollouts in batches:
            everything_B = torch.ones(rollouts.rows, dtype=torch.bool)
            true.append(self.judge.scores(self.judge.read(rollouts, everything_B))[0])
        true_N, refilled_N = torch.cat(true).double().numpy(), score_GK.flatten()
        kind_N = np.concatenate([np.ones(len(true_N)), np.zeros(len(refilled_N))])
        return calibration.auc(np.concatenate([true_N, refilled_N]), kind_N)


def share_right(texts: Refilled) -> Tensor:
    """[B]: the share of the refilled positions that is right."""
    return (texts.right_BL & texts.mark_BL).sum(-1) / texts.mark_BL.sum(-1).clamp(min=1)
