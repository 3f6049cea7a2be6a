"""Low-rank adapters on FS-DFM's linear layers, through peft (Hu et al. 2022, arXiv:2106.09685).

The layers of the network are replaced in place, so `DiT.hidden` and `DiT.logits` go through the adapters; the PeftModel around
it switches them off (`disable_adapter`) and writes folders that peft reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from relgrad.core.errors import RelgradError
from relgrad.networks.causal import saved
from relgrad.networks.fsdfm.network import DiT

ATTENTION = ("qw", "kw", "vw", "attn_out")
ALL_LINEAR = r"blocks\.\d+\.(qw|kw|vw|attn_out|mlp\.0|mlp\.2|adaLN_modulation|condition_fuser)"
"""Every linear layer inside the blocks; "all-linear" stands for it."""
HEAD = "output_layer.linear"


def add_lora(
    model: DiT, *, r: int = 16, alpha: int = 32, dropout: float = 0.0, targets: str | Sequence[str] = ATTENTION
) -> Any:
    """A PeftModel around `model`, which from now on has fresh float32 adapters and otherwise frozen weights.

    `targets` are names of layers ("qw" in every block), a regular expression for whole names, or "all-linear". The head
    stays as it is: its logits are computed at chosen positions only. Raises RelgradError for targets that are not there.
    """
    from peft import LoraConfig, get_peft_model

    modules = ALL_LINEAR if targets == "all-linear" else targets
    config = LoraConfig(
        r=r, lora_alpha=alpha, lora_dropout=dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
    )  # fmt: skip
    try:
        adapted = get_peft_model(model, config, autocast_adapter_dtype=True)
    except ValueError as error:
        linear = sorted({n.split(".", 2)[2] for n, m in model.blocks.named_modules(prefix="blocks") if _is_linear(m)})
        raise RelgradError(
            f"lora targets {targets!r}: {error}. Linear layers of a block: {', '.join(linear)}"
        ) from None
    if hasattr(model.output_layer.linear, "lora_A"):
        raise RelgradError(f"lora targets {targets!r} adapt the head ({HEAD}), which relgrad reads as a plain matrix")
    return adapted


def _is_linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear)


def save_adapter(adapted: Any, folder: Path) -> None:
    """`adapter_config.json` and `adapter_model.safetensors`, which `PeftModel.from_pretrained(DiT, folder)` reads."""
    adapted.save_pretrained(str(folder), safe_serialization=True)


def load_adapter(adapted: Any, folder: Path) -> None:
    """What `save_adapter` wrote, into adapters of the same shape. Raises RelgradError for another network's, by name."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    expected = {n: t.shape for n, t in get_peft_model_state_dict(adapted).items()}
    set_peft_model_state_dict(adapted, saved.check_adapter(Path(folder), expected))
