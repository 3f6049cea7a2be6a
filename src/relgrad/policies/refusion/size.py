"""How much of a machine a ReFusion policy takes, from its settings and the model's config.json (estimates/)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from relgrad.estimates.policy_size import NUMBERS, Lengths, Passes, PolicySize, weight_bytes
from relgrad.estimates.transformer import of_config
from relgrad.networks.causal import load as causal
from relgrad.networks.refusion.load import source_of
from relgrad.policies.refusion.settings import Settings


def size(settings: Settings, start: Path | None) -> PolicySize:
    """See estimates.policy_size.Sized. A step looks at the masks of the open slots; a row scores all steps asked for."""
    network, lora = of_config(causal.configuration(source_of(settings.model)), lean=False), settings.lora
    steps, written = settings.sampling_steps, settings.max_completion_length
    trained = settings.train_steps or steps
    masks = written * (steps + 1) / 2 / steps
    """Masked positions before a step, on average: all of them before the first, a step's share before the last."""

    def drawn(lengths: Lengths) -> Passes:
        row = lengths.prompt + written + steps * masks
        return Passes(
            lengths.each * row, steps, lengths.each * (lengths.prompt + written), lengths.prompt + written,
            lengths.each * written * 2, lengths.each * (lengths.prompt + 2 * written), lengths.each * written,
        )  # fmt: skip

    def scored(lengths: Lengths) -> Passes:
        row = lengths.prompt + written + trained * masks
        return Passes(lengths.each * row, 1, lengths.each * row, row / 2, lengths.each * written * 2)

    def learnt(lengths: Lengths) -> Passes:
        row = lengths.prompt + 2 * written
        return Passes(row, 1, row, row / 2, written, logits_at_once=written)

    def chunk_tokens(lengths: Lengths) -> tuple[float, float]:
        row = lengths.prompt + written + trained * masks
        return lengths.each * row, row

    return PolicySize(
        network=network,
        trained=network.parameters if lora is None else network.adapter(lora.r, lora.target_modules),
        weight_bytes=weight_bytes(settings.dtype, settings.quantize, network),
        number_bytes=NUMBERS[settings.dtype],
        adapted=lora is not None,
        draw=drawn,
        score=scored,
        learn=learnt,
        chunk_tokens=chunk_tokens,
        averaged=settings.ema_decay > 0,
        recomputed=settings.gradient_checkpointing,
    )


def lengths(settings: Settings, prompts: Sequence[Any], targets: Sequence[str]) -> list[Lengths]:
    """See estimates.policy_size.Sized. In tokens of the model's tokenizer."""
    tokenizer = causal.load_tokenizer(settings.tokenizer or source_of(settings.model))
    return [
        Lengths(len(tokenizer(prompt.text, add_special_tokens=False)["input_ids"]), settings.max_completion_length)
        for prompt in prompts
    ]
