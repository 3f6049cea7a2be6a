"""Folders that a masked network is saved in: its family's configuration and names of tensors, or an adapter of PEFT."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from relgrad.networks.causal import saved
from relgrad.networks.causal.adapted import is_adapted
from relgrad.networks.causal.load import quiet
from relgrad.networks.masked.load import saved_config
from relgrad.networks.masked.names import Pairs, modules_to_own, patterns, to_library, to_own
from relgrad.networks.masked.network import LibraryNetwork
from relgrad.networks.weights import files


def save(network: LibraryNetwork, tokenizer: Any, folder: Path, base: str | Path) -> None:
    """Write a folder that the family's own code reads, and `open_network`: full weights, or an adapter with what it is one of.

    `base` is where the network is from: the recipe's name for it, or the folder of an earlier stage.
    """
    quiet()
    folder = Path(folder)
    if is_adapted(network.model):
        network.model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
        _adapter_to_own(folder, _pairs(network))
        saved.save_base(folder, base)
        (folder / "README.md").unlink(missing_ok=True)  # an empty form that names paths of this machine
    else:
        network.model.save_pretrained(folder, safe_serialization=True)
        text = json.dumps(saved_config(network), indent=2, sort_keys=True)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")
        for code in Path(network.source).glob("*.py") if Path(network.source).is_dir() else ():
            shutil.copyfile(code, folder / code.name)
    tokenizer.save_pretrained(folder)


def load(network: LibraryNetwork, folder: Path) -> None:
    """Read what `save` wrote, or an adapter that was trained on the family's own code. Raises RelgradError for another model's."""
    folder, pairs = Path(folder), _pairs(network)
    if not is_adapted(network.model):
        saved.load_weights(network.model, folder, **({"key_mapping": patterns(pairs)} if pairs else {}))
        return
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    own = get_peft_model_state_dict(network.model, save_embedding_layers=False)
    expected = {_renamed(name, pairs, own=True): tensor.shape for name, tensor in own.items()}
    tensors = saved.check_adapter(folder, expected)
    set_peft_model_state_dict(network.model, {_renamed(n, pairs, own=False): t for n, t in tensors.items()})


def _pairs(network: LibraryNetwork) -> Pairs:
    """Names to be changed between the folder and the model in memory; none where they are the same."""
    library = network.family.library
    return () if network.own_code or library is None else library.renamed


def _adapter_to_own(folder: Path, pairs: Pairs) -> None:
    """Give the tensors and targets of an adapter just saved the names that the family's own code has."""
    if not pairs:
        return
    tensors = files.read(folder / saved.ADAPTER)
    save_file({_renamed(n, pairs, own=True): t for n, t in tensors.items()}, folder / saved.ADAPTER, {"format": "pt"})
    file = folder / saved.ADAPTER_CONFIG
    config = json.loads(file.read_text(encoding="utf-8"))
    if isinstance(config.get("target_modules"), list):
        config["target_modules"] = sorted(modules_to_own(config["target_modules"], pairs))
    file.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


PREFIX = "base_model.model."
"""What peft puts before the names of an adapter's tensors."""


def _renamed(name: str, pairs: Pairs, *, own: bool) -> str:
    bare = name.removeprefix(PREFIX)
    return name.removesuffix(bare) + (to_own(bare, pairs) if own else to_library(bare, pairs))
