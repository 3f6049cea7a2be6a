"""How much of a machine a fill-in policy takes, from its settings (estimates/)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from relgrad.core.errors import RelgradError
from relgrad.estimates.policy_size import Lengths, Passes, PolicySize
from relgrad.estimates.transformer import diffusion_gpt
from relgrad.policies.fill_in.settings import Settings
from relgrad.text.corpus import load_text
from relgrad.text.masking import IGNORE
from relgrad.text.vocabulary import Vocabulary


def size(settings: Settings, start: Path | None) -> PolicySize:
    """See estimates.policy_size.Sized. Rows of a group cost nothing extra: all their positions are computed once."""
    if settings.checkpoint is not None:
        raise RelgradError(
            f"no estimate for a network from policy.checkpoint={settings.checkpoint!r}, whose sizes are in the file"
        )
    vocabulary = Vocabulary.of(settings.symbols, load_text(settings.text)).size
    network = diffusion_gpt(
        settings.n_layer, settings.n_embd, vocabulary, settings.block_size,
        bias=settings.bias, absolute=settings.position_encoding == "absolute",
    )  # fmt: skip

    def passes(lengths: Lengths) -> Passes:
        spots = lengths.completion
        return Passes(lengths.prompt, 1, lengths.prompt, lengths.prompt, spots, logits_at_once=spots)

    def chunk_tokens(lengths: Lengths) -> tuple[float, float]:
        whole = lengths.prompt + lengths.completion * vocabulary / settings.n_embd
        return whole, whole

    mixed = settings.dtype == "bfloat16"
    return PolicySize(
        network=network,
        trained=network.parameters,
        weight_bytes=6 if mixed else 4,
        number_bytes=2 if mixed else 4,
        adapted=False,
        draw=passes,
        score=passes,
        learn=passes,
        chunk_tokens=chunk_tokens,
    )


def lengths(settings: Settings, prompts: Sequence[Any], targets: Sequence[str]) -> list[Lengths]:
    """See estimates.policy_size.Sized. The completion of a text is its masked positions."""
    return [_of(prompt) for prompt in prompts]


def _of(prompt: Any) -> Lengths:
    ids, labels = prompt.columns.get("masked_ids"), prompt.columns.get("label_ids")
    if ids is None:
        return Lengths(len(prompt.text), prompt.text.count("█"))
    hidden = len(ids) if labels is None else sum(label != IGNORE for label in labels)
    return Lengths(len(ids), hidden)
