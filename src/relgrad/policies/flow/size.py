"""How much of a machine a flow policy takes, from its settings (estimates/)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from relgrad.core.errors import RelgradError
from relgrad.estimates.policy_size import Lengths, Passes, PolicySize
from relgrad.estimates.transformer import diffusion_transformer
from relgrad.networks.fsdfm.network import SIZES
from relgrad.policies.flow.settings import Settings
from relgrad.policies.flow.symbols import make_symbols


def size(settings: Settings, start: Path | None) -> PolicySize:
    """See estimates.policy_size.Sized."""
    if settings.model not in SIZES:
        raise RelgradError(
            f"no estimate for a network from policy.model={settings.model!r}, whose sizes are in the file"
        )
    sizes = {"mlp_ratio": 4, **SIZES[settings.model], **settings.network.model_dump(exclude_none=True)}
    vocabulary = _symbols(settings).size
    network = diffusion_transformer(
        sizes["blocks"], sizes["hidden"], vocabulary, sizes["cond_dim"], sizes["mlp_ratio"],
        step_conditioned=settings.few_step is not None,
    )  # fmt: skip
    steps, editable, lora = settings.sampling_steps, settings.max_completion_length, settings.lora
    trained_steps = settings.train_steps or settings.branch_steps or steps
    # a branched group shares its trajectory up to a step that is drawn anywhere before the last ones
    shared = (steps - settings.branch_steps) / 2 if settings.branch_steps else 0.0

    def passes(rows: float, lengths: Lengths, calls: float, at_once: float) -> Passes:
        width = lengths.prompt + editable
        return Passes(rows * width, calls, at_once * width, width, rows * editable, logits_at_once=at_once * editable)

    def drawn(lengths: Lengths) -> Passes:
        return passes(lengths.each * (steps - shared) + shared, lengths, steps, lengths.each)

    def scored(lengths: Lengths) -> Passes:
        rows = lengths.each * trained_steps
        return passes(rows, lengths, 1, rows)

    def learnt(lengths: Lengths) -> Passes:
        # a few-step student learns from two or four further passes of its teacher
        further = 0 if settings.few_step is None else 4 if settings.few_step.teacher == "rk4" else 2
        once = passes(1 + further / 3, lengths, 1 + further, 1)
        return Passes(once.positions, once.calls, once.at_once, once.context, editable, logits_at_once=editable)

    def chunk_tokens(lengths: Lengths) -> tuple[float, float]:
        width = lengths.prompt + editable
        return lengths.each * trained_steps * width, width

    mixed = settings.dtype == "bfloat16"
    return PolicySize(
        network=network,
        trained=network.parameters if lora is None else network.adapter(lora.r, lora.target_modules),
        weight_bytes=4 if not mixed else 2 if lora is not None else 6,
        number_bytes=2 if mixed else 4,
        adapted=lora is not None,
        draw=drawn,
        score=scored,
        learn=learnt,
        chunk_tokens=chunk_tokens,
        averaged=settings.ema_decay > 0,
        recomputed=settings.gradient_checkpointing,
    )


def _symbols(settings: Settings) -> Any:
    return make_symbols(
        settings.symbols or "ascii", settings.text, settings.end_token, masked=settings.source == "mask"
    )


def lengths(settings: Settings, prompts: Sequence[Any], targets: Sequence[str]) -> list[Lengths]:
    """See estimates.policy_size.Sized. All editable positions are computed, however short a text is."""
    symbols = _symbols(settings)
    return [Lengths(len(symbols.encode(prompt)), settings.max_completion_length) for prompt in prompts]
