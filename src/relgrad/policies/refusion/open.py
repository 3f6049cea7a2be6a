"""What a ReFusion policy is made of, from a recipe's settings and the folder an earlier stage left; and back to disk.

A folder is one of transformers, or of peft and what says where the model under the adapter is (networks/causal/saved.py), with the
tokenizer and, where they are kept, averaged weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from relgrad.core.errors import RelgradError
from relgrad.networks.causal import adapted, saved
from relgrad.networks.causal import load as causal
from relgrad.networks.refusion import load as refusion
from relgrad.networks.refusion import tiny
from relgrad.networks.weights import device
from relgrad.networks.weights.keeper import take_average
from relgrad.policies.refusion.settings import Settings


class Opened(NamedTuple):
    """`model` with an adapter of peft on it where there is one; `base` is where the model under it is from."""

    model: Any
    tokenizer: Any
    mask_id: int
    base: str | Path


def open_parts(settings: Settings, seed: int, start: Path | None) -> Opened:
    """The parts of a recipe's policy, going on from `start` where an earlier stage saved one. Raises RelgradError.

    Averaged weights, where a folder has them, are taken as the weights.
    """
    if start is None and (Path(settings.model) / saved.ADAPTER_CONFIG).is_file():
        raise RelgradError(
            f"policy.model={settings.model!r} is an adapter: name the model under it, and go on from the adapter with "
            "`from: FOLDER` in a stage"
        )
    base: str | Path = settings.model
    adapter = start if start is not None and (start / saved.ADAPTER).is_file() else None
    if start is not None:
        base = start.absolute() if adapter is None else saved.base_of(adapter, settings.model)
    if adapter is not None and settings.lora is None:
        raise RelgradError(f"{adapter} is an adapter: add the lora section that it was trained with")
    tokenizer = settings.tokenizer or (str(start) if start is not None else None)
    model, read_tokenizer, mask_id = refusion.load(
        str(base), tokenizer=tokenizer, dtype=settings.dtype, quantize=settings.quantize
    )
    if settings.quantize is None:
        model.to(device.choose(settings.device))
    whole = model
    if settings.lora is not None:
        own = settings.lora
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = causal.add_lora(model, r=own.r, alpha=own.alpha, dropout=own.dropout, targets=own.target_modules)
    if adapter is not None:
        adapted.load(model, adapter)
    if adapter is None and Path(base).is_dir():
        take_average(whole, Path(base))
    elif adapter is not None:
        take_average(model, adapter)
    return Opened(model, read_tokenizer, mask_id, base)


def settled(start: Path) -> tuple[str, ...]:
    """See protocols.SettledByWeights. An adapter on the recipe's own model still needs to be told where that is."""
    has_base = not (start / saved.BASE).is_file() or saved.recipes_model(start) is not None
    return () if (start / saved.ADAPTER).is_file() and has_base else ("model",)


def never_written(model: Any, tokenizer: Any) -> list[int]:
    """Ids beside the mask that no text has: the other special token of ReFusion, and those the tokenizer does not know."""
    entries = model.get_output_embeddings().weight.shape[0]
    begin = tokenizer.get_added_vocab().get(tiny.BEGIN)
    return [*([] if begin is None else [begin]), *range(min(len(tokenizer), entries), entries)]


def save_parts(parts: Opened, folder: Path) -> None:
    """Write a folder that `open_parts` and, without the averages, transformers and peft read."""
    parts.model.save_pretrained(folder, safe_serialization=True)
    if adapted.is_adapted(parts.model):
        saved.save_base(folder, parts.base)
        (folder / "README.md").unlink(missing_ok=True)  # an empty form that names paths of this machine
    parts.tokenizer.save_pretrained(folder)
