"""Loading the weights of a causal language model, with or without an adapter, into the model that a policy holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from relgrad.core.errors import RelgradError
from relgrad.networks.causal import saved


def is_adapted(model: Any) -> bool:
    """Whether peft has put an adapter on the model."""
    return hasattr(model, "peft_config")


def bare(model: Any) -> Any:
    """The causal language model of transformers itself, also where an adapter is on it."""
    return model.get_base_model() if is_adapted(model) else model


def load(model: Any, folder: Path) -> None:
    """Read what `save_pretrained` wrote: an adapter or a full model. Raises RelgradError for another model's folder."""
    if not is_adapted(model):
        saved.load_weights(model, folder)
        return
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    expected = {n: t.shape for n, t in get_peft_model_state_dict(model).items()}
    set_peft_model_state_dict(model, saved.check_adapter(folder, expected))


def is_untrained(model: Any) -> bool:
    """Whether every second factor of the adapter is 0, as at its start: a run whose rewards never differed saves such a one."""
    return not any(bool(p.any()) for n, p in model.named_parameters() if "lora_B" in n)


def check_adapter_acts(model: Any, folder: Path) -> None:
    """Make sure that the adapter just loaded changes the model's output. Raises RelgradError when it does not."""
    entries = bare(model).get_input_embeddings().weight.shape[0]
    ids = torch.arange(1, 9, device=next(model.parameters()).device)[None] % entries
    with torch.no_grad():
        acting = model(input_ids=ids).logits
        with model.disable_adapter():
            without = model(input_ids=ids).logits
    if torch.equal(acting, without):
        raise RelgradError(
            f"{folder}: the adapter was loaded but does not change the output (untrained: every B is 0?)"
        )
