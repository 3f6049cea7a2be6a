"""Published networks (networks/masked/families): from a recipe's settings or an earlier stage to a policy's parts, and back."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.networks.causal import load as causal
from relgrad.networks.causal import saved
from relgrad.networks.causal.adapted import is_untrained
from relgrad.networks.causal.encode import Encoder
from relgrad.networks.masked import saved as masked_saved
from relgrad.networks.masked.load import Checkpoint, open_network
from relgrad.networks.masked.network import LibraryNetwork
from relgrad.networks.masked.shift_check import shift_evidence
from relgrad.networks.weights import device
from relgrad.networks.weights.folder import newest
from relgrad.networks.weights.keeper import take_average
from relgrad.policies.unmasking.parts import Opened
from relgrad.policies.unmasking.settings import Settings
from relgrad.policies.unmasking.tokens import TokenizerSymbols


def is_published(source: Path) -> bool:
    """Whether a folder holds a model of a library, or an adapter for one; a diffusion GPT's configuration has no `model_type`."""
    if (source / saved.ADAPTER_CONFIG).is_file():
        return True
    try:
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "model_type" in config


def settled_published(start: Path) -> tuple[str, ...]:
    """See protocols.SettledByWeights. An adapter on the recipe's own model still needs to be told where that is."""
    said = not (start / saved.BASE).is_file() or saved.recipes_model(start) is not None
    return ("adapter",) if (start / saved.ADAPTER).is_file() and said else ("model", "adapter", "family")


def open_published(settings: Settings, seed: int, start: Path | None) -> Opened:
    """Network and tokenizer of a recipe, going on from the folder `start` where an earlier stage saved one. Raises RelgradError."""
    if settings.writes == "holes":
        raise RelgradError(
            f"policy.writes='holes' fills in samples of this house's vocabularies; {settings.model!r} writes answers: leave it out"
        )
    if settings.symbols is not None:
        raise RelgradError(
            f"policy.symbols={settings.symbols!r} is for networks of this house; {settings.model!r} has a tokenizer of its own: "
            "leave it out, or name another tokenizer with policy.tokenizer"
        )
    base: str | Path = settings.model
    adapter = Path(settings.adapter).expanduser() if settings.adapter else None
    if start is not None:
        start = newest(start).absolute()
        if (start / saved.ADAPTER).is_file():
            adapter, base = start, saved.base_of(start, settings.model)
        else:
            base = start
    _require_trainable(settings, adapter)
    checkpoint = Checkpoint(
        str(base),
        settings.family,
        settings.trust_remote_code,
        settings.dtype,
        settings.quantize,
        settings.shift,
        settings.mask_token,
    )
    network, tokenizer, notes = open_network(checkpoint, lambda model: _adapted(model, settings, seed))
    network.recompute(settings.gradient_checkpointing)
    if adapter is None and Path(base).is_dir():
        take_average(network.model, newest(Path(base)))
    if adapter is not None:
        masked_saved.load(network, adapter)
        take_average(network.model, adapter)
        if is_untrained(network.model):
            notes += (f"the adapter of {adapter} has learnt nothing: the policy is its base model",)
    if settings.tokenizer is not None:
        tokenizer = causal.load_tokenizer(settings.tokenizer, trust_remote_code=settings.trust_remote_code)
    symbols = _symbols(network, tokenizer, settings)
    _require_blocks(network, settings)
    return Opened(network, symbols, PublishedStore(network, symbols, base), notes, partial(warn_of_shift, network))


def warn_of_shift(network: LibraryNetwork, ids_BL: Tensor, valid_BL: Tensor, true_BL: Tensor) -> None:
    """See parts.Check: warn where the outputs seem to stand elsewhere than the network's shift says."""
    evidence = shift_evidence(network, ids_BL, valid_BL, true_BL)
    if evidence.doubtful:
        warnings.warn(str(evidence), stacklevel=2)


def _require_blocks(network: LibraryNetwork, settings: Settings) -> None:
    """Raise RelgradError for blocks of the policy that are not whole blocks of a block-causal network."""
    if network.block is not None and settings.block % network.block:
        name = "max_completion_length" if settings.block_length is None else "block_length"
        raise RelgradError(
            f"policy.{name}={settings.block}: model {settings.model!r} attends in blocks of {network.block}, and what is written "
            f"at once must be whole ones: give a multiple of {network.block}"
        )


def _adapted(model: Any, settings: Settings, seed: int) -> Any:
    """The model on its device; with an adapter, drawn from `seed`, where the settings ask for one."""
    if settings.quantize is None:
        model.to(device.choose(settings.device))
    if settings.lora is None:
        return model
    lora = settings.lora
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return causal.add_lora(
            model, r=lora.r, alpha=lora.alpha, dropout=lora.dropout, targets=lora.target_modules, task=None
        )


def _require_trainable(settings: Settings, adapter: Path | None) -> None:
    """Raise RelgradError for settings of which nothing could be trained, or not well."""
    if settings.lora is not None:
        return
    if settings.quantize:
        raise RelgradError(f"quantize={settings.quantize!r} trains adapters only: add a lora section")
    if settings.dtype == "bfloat16":
        raise RelgradError(
            "dtype='bfloat16' with full-parameter training of a published model: small updates would be rounded away. Use dtype: "
            "float32, or train a float32 adapter on these weights with a lora section"
        )
    if adapter is not None:
        raise RelgradError(
            f"{adapter} is an adapter, but policy.lora is not set: add the lora section it was trained with"
        )


def _symbols(network: LibraryNetwork, tokenizer: Any, settings: Settings) -> TokenizerSymbols:
    """The tokenizer as symbols. Raises RelgradError for ids of ends that the network cannot write, or where there are none."""
    entries = network.vocabulary_size
    if foreign := [token for token in settings.eos_token_ids if not 0 <= token < entries]:
        raise RelgradError(
            f"policy.eos_token_ids: model {settings.model!r} cannot write id {foreign[0]}; it has 0 to {entries - 1}"
        )
    ends = causal.eos_ids(network.language_model, tokenizer, settings.eos_token_ids)
    if not ends:
        raise RelgradError(f"model {settings.model!r} names no end-of-sequence id: set policy.eos_token_ids")
    end_id = ends[0] if tokenizer.eos_token_id is None else int(tokenizer.eos_token_id)
    encoder = Encoder(tokenizer, settings, network.length, entries=entries, end_ids=tuple(ends), end_id=end_id)
    return TokenizerSymbols(encoder, network.mask_id, entries)


@dataclass(frozen=True)
class PublishedStore:
    """See parts.Store. `base` is the recipe's name for the model, or the folder of an earlier stage."""

    network: LibraryNetwork
    symbols: TokenizerSymbols
    base: str | Path

    def save(self, folder: Path) -> None:
        """What the family's own code reads, or an adapter of PEFT; with the tokenizer."""
        masked_saved.save(self.network, self.symbols.encoder.tokenizer, folder, self.base)

    def load(self, folder: Path) -> None:
        """Raises RelgradError for another network."""
        masked_saved.load(self.network, folder)
