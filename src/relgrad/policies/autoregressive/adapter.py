"""The folder of a bare PEFT adapter, whoever trained it: which settings hold it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from relgrad.core.errors import RelgradError
from relgrad.networks.causal import load as causal
from relgrad.networks.causal import saved

PLAIN: Mapping[str, Any] = {
    "use_rslora": False, "use_dora": False, "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {},
    "layers_to_transform": None, "fan_in_fan_out": False, "bias": "none",
}  # fmt: skip
"""Settings of PEFT that a policy's `lora` section does not have, and the values that it stands for."""


def adapter_settings(folder: Path, like: Mapping[str, Any]) -> dict[str, Any]:
    """See protocols.OpensAdapters: model and LoRA settings are the adapter's, everything else is as `like` has it.

    `like` may name the adapter's model otherwise (a bundled name). Raises RelgradError for an adapter that is no plain LoRA.
    """
    config = _config(folder / "adapter_config.json")
    if config.get("peft_type") != "LORA":
        raise RelgradError(f"{folder}: a {config.get('peft_type')} adapter; of PEFT's adapters only LORA can be opened")
    if not (folder / "adapter_model.safetensors").is_file():
        raise RelgradError(
            f"{folder}: an adapter_config.json without adapter_model.safetensors, which holds the weights"
        )
    for name, plain in PLAIN.items():
        if (config.get(name) or plain) != plain:
            raise RelgradError(
                f"{folder}: a LoRA adapter with {name}={config[name]!r}, which would be read as a plain one; merge it into its "
                "model (peft's merge_and_unload) and compare the model"
            )
    targets = config["target_modules"]
    lora = {
        "r": config["r"],
        "alpha": config["lora_alpha"],
        "dropout": config.get("lora_dropout", 0.0),
        "target_modules": targets if isinstance(targets, str) else sorted(targets),
    }
    base, model = str(config["base_model_name_or_path"]), like.get("model")
    same = model is not None and causal.resolve(model) == base
    named = saved.recipes_model(folder)  # by a run of ours, whose cache may have moved since
    return {**like, "model": model if same else named or base, "lora": lora, "adapter": None}


def _config(file: Path) -> dict[str, Any]:
    """What PEFT wrote of an adapter. Raises RelgradError for a file that is none, or lacks what a LoRA adapter is made of."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RelgradError(f"{file}: not the configuration of a PEFT adapter: {error}") from None
    needed = ("peft_type", "r", "lora_alpha", "target_modules", "base_model_name_or_path")
    if not isinstance(config, dict) or (
        config.get("peft_type") == "LORA" and any(config.get(n) is None for n in needed)
    ):
        raise RelgradError(f"{file}: not the configuration of a LoRA adapter of PEFT, which has {', '.join(needed)}")
    return config
