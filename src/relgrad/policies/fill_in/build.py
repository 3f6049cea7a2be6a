"""From settings and folders to a fill-in policy: a new network, a folder that a run saved, or a file of the original trainer."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import ValidationError

from relgrad.core.errors import RelgradError
from relgrad.networks.diffusion_gpt.network import GPT, GPTConfig
from relgrad.networks.weights import device
from relgrad.networks.weights.folder import newest
from relgrad.policies.fill_in.policy import FillInPolicy
from relgrad.policies.fill_in.settings import Settings
from relgrad.text.corpus import load_text
from relgrad.text.vocabulary import Vocabulary


def build(settings: Settings, seed: int, start: Path | None = None, reference: bool = False) -> FillInPolicy:
    """The policy of a recipe, going on from the folder `start` where an earlier stage saved one. Raises RelgradError."""
    source = start or settings.checkpoint
    if source is None:
        model, vocabulary = new_generator(settings, seed)
    else:
        model, vocabulary = load_generator(Path(source))
        if settings.critic_weight and not model.config.critic:
            raise RelgradError(
                f"critic_weight={settings.critic_weight:g}, but the network of {source} has no critic head: set critic_weight "
                "from the first stage on, or leave it out"
            )
    policy = FillInPolicy(model.to(device.choose(settings.device)), vocabulary, settings)
    if reference:
        policy.freeze_reference()
    return policy


def settled(start: Path) -> tuple[str, ...]:
    """See protocols.SettledByWeights: where the network is from, its sizes and its vocabulary."""
    return ("checkpoint", "text", "symbols", *(set(GPTConfig.model_fields) & set(Settings.model_fields)))


def new_generator(settings: Settings, seed: int) -> tuple[GPT, Vocabulary]:
    """A new network of the settings' sizes, and the vocabulary of their text. Raises RelgradError for sizes that cannot be."""
    vocabulary = Vocabulary.of(settings.symbols, load_text(settings.text))
    sizes = settings.model_dump(include=set(GPTConfig.model_fields))
    try:
        config = GPTConfig(vocab_size=vocabulary.size, critic=settings.critic_weight > 0, **sizes)
    except ValidationError as error:
        raise RelgradError(f"policy: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GPT(config), vocabulary


def load_generator(source: Path) -> tuple[GPT, Vocabulary]:
    """Network and vocabulary of a folder that a run saved, or of an original checkpoint file. Raises RelgradError."""
    source = newest(source)
    if source.is_file():
        from relgrad.networks.diffusion_gpt import original_files

        model, vocabulary = original_files.load_checkpoint(source, prefer="language_model")
    else:
        model, vocabulary = GPT.load(source), Vocabulary.load(source)
    if model.config.mode != "language_model":
        raise RelgradError(f"{source}: a {model.config.mode}, but a generator is a language_model")
    return model, vocabulary
