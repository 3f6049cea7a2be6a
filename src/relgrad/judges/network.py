r"""A judge: a network that says how likely refilled text is right, and the audit that tells whether to believe it.

    positions   every refilled position gets P(its id is the true one | the completed text, which positions were refilled);
                the score of a text is the mean over them: the expected share that is right
    sequence    one probability for the whole text, read at a summary id put in front: the share that is right

Trained with the binary cross-entropy against what is right, both say probabilities, which two numbers fitted on held-out text
calibrate: P = sigmoid(a logit + b). The judge sees the completed text; by position, also which positions were refilled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from relgrad.core.errors import RelgradError
from relgrad.core.types import Rollouts
from relgrad.networks.diffusion_gpt.network import GPT
from relgrad.networks.weights import files
from relgrad.networks.weights.folder import newest
from relgrad.text.vocabulary import Vocabulary

FILE = "judge.json"


class Refilled(NamedTuple):
    """Completed texts [B, L] with padding, where they may be looked at, which positions were refilled, and which are right."""

    ids_BL: Tensor
    valid_BL: Tensor
    mark_BL: Tensor
    right_BL: Tensor


class Judge:
    """`calibration` is (a, b); `audit` is what the last audit found, empty before; `wrongness`: the logit is of being wrong."""

    def __init__(self, model: GPT, vocabulary: Vocabulary, *, wrongness: bool = False) -> None:
        if model.config.mode == "language_model":
            raise RelgradError("a judge is a token_classifier or a sequence_scorer, this is a language_model")
        if model.config.mode == "token_classifier" and model.config.num_token_classes != 1:
            raise RelgradError(
                f"a judge by position has one class per position, this token_classifier has {model.config.num_token_classes}"
            )
        if model.config.mode == "sequence_scorer" and model.config.cls_token_id != vocabulary.cls_id:
            raise RelgradError(
                f"the judge's summary id is {model.config.cls_token_id}, its vocabulary's is {vocabulary.cls_id}"
            )
        self.model, self.vocabulary, self.wrongness = model.eval(), vocabulary, wrongness
        self.calibration = (1.0, 0.0)
        self.audit: Mapping[str, Any] = {}

    @property
    def by_position(self) -> bool:
        return self.model.config.mode == "token_classifier"

    def read(self, rollouts: Rollouts, untouched_B: Tensor | None = None) -> Refilled:
        """The texts of some rollouts as this judge looks at them; see `refilled_rollouts`."""
        config = self.model.config
        return refilled_rollouts(
            rollouts, self.vocabulary, untouched_B, config.block_size if config.attends_padding else None
        )

    # ------------------------------------------------------------------ judging

    def logits(self, ids_BL: Tensor, valid_BL: Tensor, mark_BL: Tensor) -> Tensor:
        """Differentiable logits that it is right: [B, L] by position, [B] for the whole text. Texts too long lose their end."""
        device = self.model.device
        ids_BL, valid_BL, mark_BL = (t.to(device) for t in (ids_BL, valid_BL, mark_BL))
        if self.by_position:
            mark = mark_BL if self.model.config.marks else None
            logit_BL = self.model.classes(self.model.hidden(ids_BL, valid_BL, mark))[..., 0]
            return -logit_BL if self.wrongness else logit_BL
        front_B1 = ids_BL.new_full((len(ids_BL), 1), self.vocabulary.cls_id)
        keep = self.model.config.block_size - 1
        ids_BL = torch.cat([front_B1, ids_BL[:, :keep]], 1)
        valid_BL = torch.cat([torch.ones_like(front_B1, dtype=torch.bool), valid_BL[:, :keep]], 1)
        logit_B = self.model.score(self.model.hidden(ids_BL, valid_BL))
        return -logit_B if self.wrongness else logit_B

    @torch.no_grad()
    def probabilities(self, refilled: Refilled) -> Tensor:
        """Calibrated probabilities of being right: [B, L] by position, [B] for the whole text."""
        self.model.eval()
        a, b = self.calibration
        return torch.sigmoid(a * self.logits(refilled.ids_BL, refilled.valid_BL, refilled.mark_BL) + b).cpu()

    def scores(self, refilled: Refilled) -> tuple[Tensor, Tensor | None]:
        """(score [B], probabilities [B, L] or None): the expected share of the refilled positions that is right."""
        p = self.probabilities(refilled)
        if not self.by_position:
            return p, None
        mark_BL = refilled.mark_BL
        return (p * mark_BL).sum(-1) / mark_BL.sum(-1).clamp(min=1), p

    def loss(self, refilled: Refilled) -> tuple[Tensor, int]:
        """Summed binary cross-entropy (nats) and its count: refilled positions, or texts (target: the share right).

        Of the calibrated logits, so that a judge that goes on learning after its audit stays calibrated.
        """
        a, b = self.calibration
        logits = a * self.logits(refilled.ids_BL, refilled.valid_BL, refilled.mark_BL) + b
        mark_BL, right_BL = refilled.mark_BL.to(logits.device), refilled.right_BL.to(logits)
        if self.by_position:
            loss = functional.binary_cross_entropy_with_logits(logits[mark_BL], right_BL[mark_BL], reduction="sum")
            return loss, int(mark_BL.sum())
        share_B = (right_BL * mark_BL).sum(-1) / mark_BL.sum(-1).clamp(min=1)
        return functional.binary_cross_entropy_with_logits(logits, share_B, reduction="sum"), len(share_B)

    # ------------------------------------------------------------------ disk

    def save(self, folder: Path) -> None:
        """`model.safetensors`, `config.json`, `vocabulary.json`, and `judge.json` with calibration and audit."""
        self.model.save(Path(folder))
        self.vocabulary.save(Path(folder))
        plain = {"calibration": list(self.calibration), "wrongness": self.wrongness, "audit": dict(self.audit)}
        (Path(folder) / FILE).write_text(json.dumps(plain, indent=2), encoding="utf-8")

    @staticmethod
    def load(source: Path) -> Judge:
        """What `save` wrote (or the stage's folder around it), or an original .pt file, which scores wrongness.

        Raises RelgradError.
        """
        source = newest(Path(source))
        if source.is_file():
            from relgrad.networks.diffusion_gpt import original_files

            model, vocabulary = original_files.load_checkpoint(source, prefer="sequence_scorer")
            return Judge(model, vocabulary, wrongness=True)
        if not (source / FILE).is_file():
            raise RelgradError(
                f"{source}: no {FILE}; give the folder of a judge stage (runs/NAME/2-judge) or, inside a recipe, stage:LABEL"
            )
        try:
            plain = json.loads((source / FILE).read_text(encoding="utf-8"))
            wrongness, audit, (a, b) = bool(plain["wrongness"]), dict(plain["audit"]), map(float, plain["calibration"])
        except (ValueError, KeyError, TypeError) as error:
            raise files.damaged(source / FILE, error) from None
        judge = Judge(GPT.load(source), Vocabulary.load(source), wrongness=wrongness)
        judge.calibration, judge.audit = (a, b), audit
        return judge


def refilled(
    completed: Sequence[Sequence[int]],
    masked: Sequence[Sequence[int]],
    truth: Sequence[Sequence[int]] | None,
    vocabulary: Vocabulary,
    windows: Sequence[int] | None = None,
) -> Refilled:
    """Rows of ids as the judge reads them. Refilled is what `masked` masks; without `truth` nothing is known to be right.

    `windows`: how many ids of each row are looked at, padding included; None: the text alone.
    """
    length_B = torch.tensor([len(ids) for ids in completed] if windows is None else list(windows))
    width = int(length_B.max())
    ids_BL = _padded(completed, vocabulary.pad_id, width)
    valid_BL = torch.arange(width)[None] < length_B[:, None]
    mark_BL = (_padded(masked, vocabulary.pad_id, width) == vocabulary.mask_id) & valid_BL
    right_BL = torch.zeros_like(mark_BL) if truth is None else ids_BL == _padded(truth, vocabulary.pad_id, width)
    return Refilled(ids_BL, valid_BL, mark_BL, right_BL & valid_BL)


def refilled_rollouts(
    rollouts: Rollouts, vocabulary: Vocabulary, untouched_B: Tensor | None = None, window: int | None = None
) -> Refilled:
    """The texts of some rollouts of masked prompts; rows of `untouched_B` (bool [B]) are the true texts in their place.

    With `window` the padding of a sample is looked at too, up to so many ids in all.

    Raises RelgradError for prompts without the columns of masked text, or of another vocabulary.
    """
    completed, masked, truth, windows = [], [], [], list[int]()
    for row, output in enumerate(rollouts.outputs):
        prompt = rollouts.prompts[int(rollouts.group_B[row])]
        if not {"masked_ids", "truth_ids", "vocabulary"} <= prompt.columns.keys():
            raise RelgradError(
                f"prompt {prompt.id} has no masked_ids, truth_ids and vocabulary columns: a judge reads masked text "
                "(task kind masked_text or masked_stream)"
            )
        vocabulary.require(prompt.columns["vocabulary"], f"prompt {prompt.id}")
        untouched = untouched_B is not None and bool(untouched_B[row])
        completed.append(prompt.columns["truth_ids"] if untouched else output.ids)
        masked.append(prompt.columns["masked_ids"])
        truth.append(prompt.columns["truth_ids"])
        windows.append(max(len(output.ids), min(prompt.columns.get("width", 0), window or 0)))
    return refilled(completed, masked, truth, vocabulary, None if window is None else windows)


def _padded(rows: Sequence[Sequence[int]], value: int, width: int) -> Tensor:
    """int64 [B, width], filled up with `value`."""
    ids_BL = torch.full((len(rows), width), value)
    for ids_L, row in zip(ids_BL, rows, strict=True):
        ids_L[: len(row)] = torch.as_tensor(row)
    return ids_BL
