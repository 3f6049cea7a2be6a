"""How much of a machine a policy that unmasks takes, from its settings and, of a published model, its config.json (estimates/)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from relgrad.core.errors import RelgradError
from relgrad.estimates.policy_size import NUMBERS, Lengths, Passes, PolicySize, weight_bytes
from relgrad.estimates.transformer import Transformer, diffusion_gpt, of_config
from relgrad.networks.causal import load as causal
from relgrad.networks.masked.load import resolve
from relgrad.policies.unmasking.settings import NEW, Settings
from relgrad.policies.unmasking.symbols import make_symbols


def size(settings: Settings, start: Path | None) -> PolicySize:
    """See estimates.policy_size.Sized. A surrogate asks its own number of times for a text, whatever its trajectory was."""
    new, lora = settings.model == NEW, settings.lora
    network = _new(settings) if new else of_config(causal.configuration(resolve(settings.model)), lean=False)
    steps, written = settings.sampling_steps, settings.max_completion_length
    trained = _passes(settings)

    def passes(rows: float, lengths: Lengths, calls: float, at_once: float, logits: float) -> Passes:
        width = lengths.prompt + (written if settings.writes == "answer" else 0)
        return Passes(rows * width, calls, at_once * width, width, logits, logits_at_once=logits / calls)

    def drawn(lengths: Lengths) -> Passes:
        return passes(lengths.each * steps, lengths, steps, lengths.each, lengths.each * steps * written)

    def scored(lengths: Lengths) -> Passes:
        rows = lengths.each * trained
        return passes(rows, lengths, 1, rows, rows * written)

    def learnt(lengths: Lengths) -> Passes:
        return passes(1, lengths, 1, 1, written)

    def chunk_tokens(lengths: Lengths) -> tuple[float, float]:
        width = lengths.prompt + (written if settings.writes == "answer" else 0)
        return lengths.each * trained * width, width

    mixed = new and settings.dtype == "bfloat16"
    return PolicySize(
        network=network,
        trained=network.parameters if lora is None else network.adapter(lora.r, lora.target_modules),
        weight_bytes=(6 if mixed else 4) if new else weight_bytes(settings.dtype, settings.quantize, network),
        number_bytes=NUMBERS[settings.dtype],
        adapted=lora is not None,
        draw=drawn,
        score=scored,
        learn=learnt,
        chunk_tokens=chunk_tokens,
        averaged=settings.ema_decay > 0,
        recomputed=settings.gradient_checkpointing,
    )


def _new(settings: Settings) -> Transformer:
    own = settings.network
    vocabulary = make_symbols(settings.symbols or "ascii", settings.text).size
    absolute = own.position_encoding == "absolute"
    return diffusion_gpt(own.n_layer, own.n_embd, vocabulary, own.block_size, bias=own.bias, absolute=absolute)


def _passes(settings: Settings) -> float:
    """How often the network is asked for one text in training."""
    if settings.estimator.kind == "exact":
        return float(settings.train_steps or settings.sampling_steps)
    if settings.estimator.kind == "mean_field":
        return 1.0
    if settings.estimator.kind == "coupled":
        return 2.0
    values = dict(settings.estimator)
    if "segments" in values:
        return float(values["segments"])
    if "samples" not in values:
        raise RelgradError(f"no estimate for policy.estimator.kind={settings.estimator.kind}")
    return float(values["samples"]) * (2 if values.get("antithetic") else 1)


def lengths(settings: Settings, prompts: Sequence[Any], targets: Sequence[str]) -> list[Lengths]:
    """See estimates.policy_size.Sized. All written positions are computed, however short a text is."""
    if settings.model == NEW:
        return [Lengths(len(prompt.text), settings.max_completion_length) for prompt in prompts]
    tokenizer = causal.load_tokenizer(
        settings.tokenizer or resolve(settings.model), trust_remote_code=settings.trust_remote_code
    )
    return [
        Lengths(len(tokenizer(prompt.text, add_special_tokens=False)["input_ids"]), settings.max_completion_length)
        for prompt in prompts
    ]
