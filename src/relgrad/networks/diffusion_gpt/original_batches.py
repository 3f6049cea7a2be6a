"""Batch files of the original, read: masked text, or texts for its judge, in either of two formats.

A   {"tensors": {x, y} or {input_ids, targets}, "metadata"}, or these tensors loose
B   {"batches": [{"tensors": {input, target}, "metadata": {model_mode ...}}, ...], "metadata"}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.networks.diffusion_gpt.original_files import Layout
from relgrad.networks.weights.safe_pickle import load_tensors
from relgrad.text.masking import IGNORE

PAIRS = (("input", "target"), ("x", "y"), ("input_ids", "targets"))


def load_batches(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, metadata) of a batch file of format A or B, in the file's own ids.

    Tensors are `masked_ids` and `label_ids` (int64 [N, L], -100: not asked) for masked text, `judged_ids` (int64 [N, L]) and
    `targets` (float32 [N]) for a judge's; a file of both has all four. Metadata is the file's, with `masked_strategy`,
    `judged_strategy` and `judged_ratio` (one per row, where the file has them). Raises RelgradError.
    """
    path = Path(path)
    file = load_tensors(path)
    if not isinstance(file, dict):
        raise RelgradError(f"{path}: not a batch file: a {type(file).__name__}")
    batches = file.get("batches", [file])
    if not isinstance(batches, list) or not batches or not all(isinstance(b, dict) for b in batches):
        raise RelgradError(f"{path}: not a batch file: `batches` is no list of mappings, or an empty one")
    parts: dict[str, list[Tensor]] = {}
    lists: dict[str, list[Any]] = {}
    for number, batch in enumerate(batches):
        ids, target = _pair(batch.get("tensors", batch), f"{path}, batch {number + 1}")
        metadata = batch.get("metadata") or {}
        kind = "masked" if target.dim() == 2 else "judged"
        parts.setdefault(f"{kind}_ids", []).append(ids.long())
        parts.setdefault("label_ids" if kind == "masked" else "targets", []).append(
            target.long() if kind == "masked" else target.float()
        )
        stages = metadata.get("stage_info") or metadata.get("masking_strategy") or []
        names = [str(s.get("type", "")) if isinstance(s, dict) else str(s) for s in stages]
        lists.setdefault(f"{kind}_strategy", []).extend(names if len(names) == len(ids) else [""] * len(ids))
        ratios = metadata.get("masking_ratio") or []
        lists.setdefault(f"{kind}_ratio", []).extend(ratios if len(ratios) == len(ids) else [None] * len(ids))
    for name, tensors in parts.items():
        if len({t.shape[1:] for t in tensors}) > 1:
            raise RelgradError(
                f"{path}: {name} of its batches differ in width: {sorted({tuple(t.shape) for t in tensors})}"
            )
    return {name: torch.cat(tensors) for name, tensors in parts.items()}, {**(file.get("metadata") or {}), **lists}


def _pair(tensors: Any, where: str) -> tuple[Tensor, Tensor]:
    """The two tensors of a batch. Raises RelgradError when they are not there or do not fit."""
    names = tensors.keys() if isinstance(tensors, dict) else set()
    for first, second in PAIRS:
        if {first, second} <= names:
            ids, target = tensors[first], tensors[second]
            break
    else:
        allowed = ", or ".join(" and ".join(pair) for pair in PAIRS)
        raise RelgradError(f"{where}: no {allowed} in it; it has {', '.join(map(str, names)) or 'nothing'}")
    if not isinstance(ids, Tensor) or not isinstance(target, Tensor):
        raise RelgradError(
            f"{where}: {first} and {second} are {type(ids).__name__} and {type(target).__name__}, not tensors"
        )
    masked = target.shape == ids.shape and not target.is_floating_point()
    judged = target.shape == ids.shape[:1] and target.is_floating_point()
    if ids.dim() != 2 or ids.is_floating_point() or not len(ids) or not (masked or judged):
        raise RelgradError(
            f"{where}: {first} is {ids.dtype} {tuple(ids.shape)} and {second} is {target.dtype} {tuple(target.shape)}; wanted are "
            "integers [N, L] and either integers [N, L] (labels) or numbers [N] (what a judge should say)"
        )
    return ids, target


def translate_labels(label_NL: Tensor, layout: Layout, what: str) -> np.ndarray:
    """Labels in relgrad's ids, IGNORE where nothing is asked for.

    Raises RelgradError for an id that is not in the vocabulary, and for negative ones other than IGNORE.
    """
    other_N = label_NL[(label_NL < 0) & (label_NL != IGNORE)]
    if len(other_N):
        raise RelgradError(
            f"{what}: a label is {int(other_N[0])}; {IGNORE} is what stands where nothing is asked for. Write the batches with "
            f"ignore_index={IGNORE}"
        )
    translated_NL = layout.translate(label_NL.clamp(min=0), what).copy()  # any id stands in where nothing is asked
    translated_NL[(label_NL == IGNORE).numpy()] = IGNORE
    return translated_NL
