"""What a policy that unmasks is made of, from a recipe's settings: a new network, or a folder that a run saved; and back to disk.

A folder holds the network (`config.json`, `model.safetensors`) and `vocabulary.json`; a generator of kind fill_in saves the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError

from relgrad.core.errors import RelgradError
from relgrad.networks.causal.load import DTYPES
from relgrad.networks.diffusion_gpt.network import GPT, GPTConfig
from relgrad.networks.masked.diffusion_gpt import MaskedGPT
from relgrad.networks.weights import device
from relgrad.networks.weights.folder import newest
from relgrad.networks.weights.keeper import take_average
from relgrad.policies.unmasking.parts import Opened
from relgrad.policies.unmasking.published import is_published, open_published, settled_published
from relgrad.policies.unmasking.settings import NEW, PUBLISHED_ONLY, Settings
from relgrad.policies.unmasking.symbols import VocabularySymbols, make_symbols
from relgrad.text.vocabulary import Vocabulary


def open_parts(settings: Settings, seed: int, start: Path | None) -> Opened:
    """Network and symbols of a recipe, going on from the folder `start` where an earlier stage saved one.

    Averaged weights, where a folder has them, are taken as the weights. Raises RelgradError.
    """
    source = start if start is not None else None if settings.model == NEW else Path(settings.model).expanduser()
    if source is not None and (is_published(newest(source)) or not source.is_dir()):
        return open_published(settings, seed, start)
    if names := [name for name in PUBLISHED_ONLY if getattr(settings, name) != Settings.model_fields[name].default]:
        raise RelgradError(
            f"policy.{names[0]} is for published models, and {settings.model!r} is a network of this house: leave it out, or name "
            "a folder or hub name in policy.model"
        )
    if source is None:
        model, symbols = new_network(settings, seed)
    else:
        model, symbols = saved_network(newest(Path(source)), settings)
    model.arithmetic = DTYPES[settings.dtype]
    model.to(device.choose(settings.device))
    return diffusion_gpt(model, symbols)


def diffusion_gpt(model: GPT, symbols: VocabularySymbols) -> Opened:
    """The parts around a diffusion GPT. Raises RelgradError for one that is of another vocabulary, or cannot unmask."""
    if model.config.vocab_size != symbols.size:
        raise RelgradError(
            f"the network has {model.config.vocab_size} ids, its {symbols.vocabulary} needs {symbols.size}"
        )
    if model.config.attends_padding:
        raise RelgradError(
            "this network looks at the padding of its samples, as the original trainer has it; texts of several lengths that are "
            "written together need one that does not: train a new one (policy.model: new)"
        )
    return Opened(MaskedGPT(model, symbols.mask_id), symbols, GptStore(model, symbols))


def new_network(settings: Settings, seed: int) -> tuple[GPT, VocabularySymbols]:
    """A new network of the settings' sizes, and its symbols. Raises RelgradError for sizes that cannot be."""
    symbols = make_symbols(settings.symbols or "ascii", settings.text)
    try:
        config = GPTConfig(vocab_size=symbols.size, **settings.network.model_dump())
    except ValidationError as error:
        raise RelgradError(f"policy.network: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GPT(config), symbols


def saved_network(source: Path, settings: Settings) -> tuple[GPT, VocabularySymbols]:
    """What a run saved. Raises RelgradError for a folder that is not there or holds something else."""
    model, vocabulary = GPT.load(source), Vocabulary.load(source)
    if settings.symbols is not None:
        named = make_symbols(settings.symbols, settings.text)
        vocabulary.require(named.fingerprint, "the vocabulary of the recipe (policy.symbols)")
    take_average(model, source)
    return model, VocabularySymbols(vocabulary)


def settled(start: Path) -> tuple[str, ...]:
    """See protocols.SettledByWeights: where the network is from, its sizes and its vocabulary."""
    start = newest(start)
    return settled_published(start) if is_published(start) else ("model", "network", "symbols", "text")


@dataclass(frozen=True)
class GptStore:
    """See Store: a diffusion GPT and its vocabulary."""

    model: GPT
    symbols: VocabularySymbols

    def save(self, folder: Path) -> None:
        """`model.safetensors`, `config.json` and `vocabulary.json`."""
        self.model.save(folder)
        self.symbols.save(folder)

    def load(self, folder: Path) -> None:
        """Raises RelgradError for another network or vocabulary."""
        saved = GPT.load(folder)
        self.symbols.vocabulary.require(Vocabulary.load(folder).fingerprint, str(folder))
        self.model.take(saved.state_dict(), str(folder))
