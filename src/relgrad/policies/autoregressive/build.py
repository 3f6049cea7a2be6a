"""From settings and folders to an autoregressive policy: base model, adapter, the folder an earlier stage left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from relgrad.core.errors import RelgradError
from relgrad.networks.causal import load as causal
from relgrad.networks.causal import saved
from relgrad.networks.causal.adapted import bare, check_adapter_acts, is_untrained
from relgrad.networks.weights import device
from relgrad.policies.autoregressive.choose import choose_engine
from relgrad.policies.autoregressive.policy import AutoregressivePolicy
from relgrad.policies.autoregressive.settings import Settings


def build(settings: Settings, seed: int, start: Path | None = None, reference: bool = False) -> AutoregressivePolicy:
    """The policy of a recipe. `start` is the folder an earlier stage saved: an adapter to go on with, or a full model.

    `reference` keeps a copy of the trainable start weights, for divergence terms. Raises RelgradError.
    """
    base: str | Path = settings.model
    adapter = Path(settings.adapter) if settings.adapter else None
    if start is not None:
        if (start / saved.ADAPTER).is_file():
            adapter, base = start, saved.base_of(start, settings.model)
        else:
            base = start.absolute()
    _require_trainable(settings, adapter)
    tokenizer = causal.load_tokenizer(_tokenizer(settings, start), trust_remote_code=settings.trust_remote_code)
    policy = compose(_model(settings, str(base), seed), tokenizer, settings, base)
    if adapter is not None:
        policy.load(adapter)
        if adapter == start and is_untrained(policy.model):
            policy.notes += (f"the adapter of {adapter} has learnt nothing: the policy is its base model",)
        else:
            check_adapter_acts(policy.model, adapter)
    if reference:
        policy.freeze_reference()
    return policy


def settled(start: Path) -> tuple[str, ...]:
    """See protocols.SettledByWeights. An adapter on the recipe's own model still needs to be told where that is."""
    said = not (start / saved.BASE).is_file() or saved.recipes_model(start) is not None
    return ("adapter",) if (start / saved.ADAPTER).is_file() and said else ("model", "adapter")


def compose(model: Any, tokenizer: Any, settings: Settings, base: str | Path | None = None) -> AutoregressivePolicy:
    """A policy around a model (with or without an adapter of peft) and the engine that runs it. Raises RelgradError.

    `base` is where the model is from: the recipe's name for it, or the folder of an earlier stage; None: the recipe's.
    """
    engine, note = choose_engine(bare(model).eval(), settings.engine)
    return AutoregressivePolicy(model, tokenizer, settings, engine, base or settings.model, (note,))


def _tokenizer(settings: Settings, start: Path | None) -> str:
    """Where the tokenizer is: where the recipe says, beside the weights of the stage before, or beside the recipe's model."""
    if settings.tokenizer is None and start is not None and (start / "tokenizer_config.json").is_file():
        return str(start)
    return settings.tokenizer or settings.model


def _require_trainable(settings: Settings, adapter: Path | None) -> None:
    """Raise RelgradError for settings of which nothing could be trained, or not well."""
    if settings.lora is not None:
        return
    if settings.quantize:
        raise RelgradError(f"quantize={settings.quantize!r} trains adapters only: add a lora section")
    if settings.dtype in ("bfloat16", "float16"):
        raise RelgradError(
            f"dtype={settings.dtype!r} with full-parameter training: small updates would be rounded away. Use dtype: float32, or "
            "train a float32 adapter on these weights with a lora section"
        )
    if adapter is not None:
        raise RelgradError(
            f"{adapter} is an adapter, but policy.lora is not set: add the lora section it was trained with"
        )


def _model(settings: Settings, name: str, seed: int) -> Any:
    """The model on its device; with an adapter, drawn from `seed`, where the settings ask for one."""
    model = causal.load_model(
        name, dtype=settings.dtype, quantize=settings.quantize, trust_remote_code=settings.trust_remote_code
    )
    if settings.quantize is None:
        model.to(device.choose(settings.device))
    if settings.lora is None:
        return model
    lora = settings.lora
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return causal.add_lora(model, r=lora.r, alpha=lora.alpha, dropout=lora.dropout, targets=lora.target_modules)
