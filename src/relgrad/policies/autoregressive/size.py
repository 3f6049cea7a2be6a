"""How much of a machine an autoregressive policy takes, from its settings and the model's config.json (estimates/)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from relgrad.estimates.policy_size import NUMBERS, Lengths, Passes, PolicySize, weight_bytes
from relgrad.estimates.transformer import of_config
from relgrad.networks.causal import load as causal
from relgrad.policies.autoregressive.settings import Settings


def size(settings: Settings, start: Path | None) -> PolicySize:
    """See estimates.policy_size.Sized. The engine is taken to be the shared one unless the settings say otherwise."""
    config = causal.configuration(settings.model)
    shared = settings.engine != "transformers"
    exact = settings.dtype in ("float32", "float64") and settings.quantize is None
    lean = shared and exact and not settings.gradient_checkpointing and not (settings.lora and settings.lora.dropout)
    network = of_config(config, lean)
    lora = settings.lora
    passes = _shared if shared else _one_by_one

    def drawn(lengths: Lengths) -> Passes:
        return passes(lengths, calls=lengths.completion, drawing=True)

    def scored(lengths: Lengths) -> Passes:
        return passes(lengths, calls=1, drawing=False)

    def learnt(lengths: Lengths) -> Passes:
        return _one_by_one(Lengths(lengths.prompt, lengths.completion), calls=1, drawing=False)

    def chunk_tokens(lengths: Lengths) -> tuple[float, float]:
        row = lengths.prompt + lengths.completion
        return (lengths.prompt + lengths.each * lengths.completion if shared else lengths.each * row), row

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
        recomputed=settings.gradient_checkpointing,
    )


def _shared(lengths: Lengths, calls: float, drawing: bool) -> Passes:
    """A prompt once, then its completions."""
    written = lengths.each * max(lengths.completion - 1, 1)
    positions = lengths.prompt + written
    return Passes(
        positions=positions,
        calls=calls,
        at_once=max(lengths.prompt, lengths.each) if drawing else positions,
        context=(lengths.prompt + lengths.completion) / 2,
        decisions=lengths.each * lengths.completion,
        cached=positions if drawing else 0.0,
    )


def _one_by_one(lengths: Lengths, calls: float, drawing: bool) -> Passes:
    """Every row with its prompt; the library's own forward, with whole logits of the completions while it scores."""
    row = lengths.prompt + lengths.completion
    positions = lengths.each * row
    return Passes(
        positions=positions,
        calls=calls,
        at_once=lengths.each * lengths.prompt if drawing else positions,
        context=row / 2,
        decisions=lengths.each * lengths.completion,
        cached=positions if drawing else 0.0,
        logits_at_once=lengths.each * (1 if drawing else lengths.completion),
    )


def lengths(settings: Settings, prompts: Sequence[Any], targets: Sequence[str]) -> list[Lengths]:
    """See estimates.policy_size.Sized. In tokens of the model's tokenizer."""
    tokenizer = causal.load_tokenizer(
        settings.tokenizer or settings.model, trust_remote_code=settings.trust_remote_code
    )
    limit = settings.max_completion_length

    def tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    overhead = 0
    if settings.chat or settings.system_prompt:
        said = [{"role": "user", "content": ""}]
        if settings.system_prompt:
            said.insert(0, {"role": "system", "content": settings.system_prompt})
        overhead = tokens(tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True))
    written = [min(tokens(target) + 1, 10**9) if target else limit for target in targets] or [limit] * len(prompts)
    return [
        Lengths(tokens(prompt.text) + overhead, completion) for prompt, completion in zip(prompts, written, strict=True)
    ]
