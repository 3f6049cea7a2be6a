"""Folders that a causal language model is saved in: full weights, or an adapter and what says where the model under it is."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from relgrad.core.errors import RelgradError
from relgrad.networks.causal import load
from relgrad.networks.weights import files

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
BASE = "base.json"
"""Beside an adapter: `model`, the recipe's name for its base, or `folder`, where an earlier stage left it, seen from here."""


def load_weights(model: PreTrainedModel, folder: Path, **options: Any) -> None:
    """Full-model weights from a folder that `save_pretrained` wrote, bit for bit. Raises RelgradError for another model's folder.

    The names in the files are not always those of the modules, and some tensors are stored in pieces: transformers, which wrote
    them, reads them too; `options` are more of what `from_pretrained` takes.
    """
    held = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not held:
        kind = "an adapter" if (folder / ADAPTER).is_file() else "no config.json and *.safetensors"
        raise RelgradError(f"{folder}: expected a full model, found {kind}")
    for file in held:
        files.require_fetched(file)
    saved, problems = load.from_library(
        type(model),
        str(folder),
        config=copy.deepcopy(model.config),
        dtype=model.dtype,
        ignore_mismatched_sizes=True,
        **options,
    )
    if problems.any:
        raise RelgradError(f"{folder}: holds another model ({problems})")
    files.require_finite(saved.named_parameters(), str(folder))
    model.load_state_dict(saved.state_dict())


def check_adapter(folder: Path, names: dict[str, torch.Size]) -> dict[str, torch.Tensor]:
    """The tensors of a saved adapter, after making sure that it is there, not nested one level down, and this model's own.

    `names` are the adapter tensors expected, with shapes. Raises RelgradError.
    """
    file = folder / ADAPTER
    if not file.is_file():
        nested = sorted(str(p.parent.relative_to(folder)) for p in folder.glob(f"*/{ADAPTER}"))
        if nested:
            raise RelgradError(f"{folder}: no adapter here, but in {', '.join(nested)}; name that folder")
        kind = "a full model" if (folder / "config.json").is_file() else "no adapter"
        raise RelgradError(f"{folder}: holds {kind}, not {ADAPTER}")
    tensors = files.read(file)
    missing, foreign = sorted(set(names) - set(tensors)), sorted(set(tensors) - set(names))
    shapes = [n for n in names if n in tensors and tensors[n].shape != names[n]]
    if missing or foreign or shapes:
        base = _mapping(folder / ADAPTER_CONFIG).get("base_model_name_or_path", "unknown")
        first = (missing or foreign or shapes)[0]
        what = (
            "is missing"
            if missing
            else "is not in this model"
            if foreign
            else f"has shape {tuple(tensors[first].shape)}, expected {tuple(names[first])}"
        )
        raise RelgradError(
            f"{folder}: this adapter belongs to another model or LoRA configuration (made for {base}): {first} {what}; "
            f"{len(missing)} missing, {len(foreign)} foreign, {len(shapes)} of another shape"
        )
    files.require_finite(tensors.items(), str(file))
    return tensors


# ---------------------------------------------------------------------- the model under an adapter


def save_base(folder: Path, base: str | Path) -> None:
    """Write into an adapter's folder what it is an adapter of: the name in the recipe, or the folder of an earlier stage.

    A folder is written as seen from here, so that a run may be renamed or copied as a whole.
    """
    of = {"folder": os.path.relpath(base, folder)} if isinstance(base, Path) else {"model": base}
    (folder / BASE).write_text(json.dumps(of, indent=2), encoding="utf-8")


def base_of(adapter: Path, name: str) -> str | Path:
    """The model under a saved adapter: `name`, the recipe's, or the folder where an earlier stage left it.

    A folder of adapters without BASE (of other programs, of earlier versions) says it in its adapter_config.json. Raises
    RelgradError where that folder is gone.
    """
    if (adapter / BASE).is_file():
        relative = _mapping(adapter / BASE).get("folder")
        if relative is None:
            return name
        base = Path(os.path.normpath(adapter.absolute() / relative))
    else:
        named = str(_mapping(adapter / ADAPTER_CONFIG).get("base_model_name_or_path"))
        if named == load.resolve(name):
            return name
        base = Path(named)
    if not (base / "config.json").is_file():
        raise RelgradError(
            f"{adapter}: this adapter was trained on {str(base)!r}, which is no model folder here. An adapter of a later stage "
            "needs the full weights of the stage before: keep the folders of a run together, or put that one back"
        )
    return base


def recipes_model(adapter: Path) -> str | None:
    """The recipe's name for the model under a saved adapter; None where it is not said. Raises RelgradError for a damaged file."""
    name = _mapping(adapter / BASE).get("model") if (adapter / BASE).is_file() else None
    return None if name is None else str(name)


def _mapping(file: Path) -> dict[str, Any]:
    """A JSON object. Raises RelgradError for a file that is not there or holds something else."""
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise files.damaged(file, error) from None
    if not isinstance(read, dict):
        raise RelgradError(f"{file}: not a JSON object, but {type(read).__name__}")
    return read
