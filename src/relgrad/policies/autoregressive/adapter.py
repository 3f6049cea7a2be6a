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
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    if config.get("peft_type") != "LORA":
        raise RelgradError(f"{folder}: a {config.get('peft_type')} adapter; of PEFT's adapters only LORA can be opened")
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
