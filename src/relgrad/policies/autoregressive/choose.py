"""Which engine runs a model: a probe decides, once, at loading time.

It draws two completions for each of two prompts on the shared-prompt engine, scores them there, and compares both
log-probabilities with the model's own forward pass, attention as it came. What it finds is said, never silently worked around.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.laws import categorical, tiled
from relgrad.laws.precision import ROUNDING
from relgrad.networks.causal import decode, shared_prompt
from relgrad.policies.autoregressive.engine import Engine, arithmetic
from relgrad.policies.autoregressive.shared_engine import SharedEngine
from relgrad.policies.autoregressive.transformers_engine import TransformersEngine


def choose_engine(model: Any, setting: str) -> tuple[Engine, str]:
    """The engine for the setting `engine`, and a sentence that says which it is and why.

    Raises RelgradError when "shared" is insisted on and the probe fails.
    """
    if setting == "transformers":
        return TransformersEngine(model), "engine: transformers (asked for)"
    problem = _why_not_shared(model)
    if not problem:
        return SharedEngine(model), "engine: shared (probe passed)"
    what = f"{type(model).__name__} does not run on the shared-prompt attention ({problem})"
    if setting == "shared":
        raise RelgradError(f"engine='shared': {what}; use engine: auto or transformers")
    return TransformersEngine(model), f"engine: transformers ({what})"


def _why_not_shared(model: Any) -> str:
    """Why the model does not run on the shared-prompt attention, or nothing: then that is its attention from now on."""
    before = model.config._attn_implementation
    shared_prompt.register_attention()
    try:
        head = _plain_head(model)
        expected = _probe_forward(model)
        model.set_attn_implementation(shared_prompt.ATTENTION)
        error = _probe(model, head, expected)
        problem = f"log-probs differ by {error:.2g} nats" if error > ROUNDING[arithmetic(model)] else ""
    except Exception as failure:  # any failure of a foreign architecture means the same: it cannot run here
        problem = f"{type(failure).__name__}: {str(failure).splitlines()[0] if str(failure) else ''}"
    if problem:
        model.set_attn_implementation(before)
    return problem


def _plain_head(model: Any) -> tiled.Head:
    """The model's head. Raises NotImplementedError where the logits are not simply its product with the hidden states."""
    layer = model.get_output_embeddings()
    if getattr(model.config.get_text_config(decoder=True), "final_logit_softcapping", None) is not None:
        raise NotImplementedError("its logits are soft-capped")
    return tiled.Head(layer.weight, getattr(layer, "bias", None))


def _probe_tokens(model: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Two prompts and, for each, two completions of random tokens."""
    device = next(model.parameters()).device
    draw = torch.Generator().manual_seed(0)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    lengths = ((5, 3), (2, 4, 3, 1))
    prompts, rows = ([torch.randint(0, vocabulary, (n,), generator=draw).to(device) for n in ns] for ns in lengths)
    return prompts, rows


def _log_probs(model: Any, prompt: Tensor, row: Tensor) -> Tensor:
    """log pi [len(row), V] at the prompt's last token and at every token of the row but the last, by the model's forward."""
    logits = model(torch.cat([prompt, row])[None], use_cache=False).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)


@torch.no_grad()
def _probe_forward(model: Any) -> Tensor:
    """log pi of the probe's completions, all positions one below the other, by the model's own forward."""
    prompts, rows = _probe_tokens(model)
    return torch.cat([_log_probs(model, prompts[i // 2], row) for i, row in enumerate(rows)])


@torch.no_grad()
def _probe(model: Any, head: tiled.Head, expected: Tensor) -> float:
    """Largest difference in log-prob from the model's own forward: of packed scoring, and of what decoding drew."""
    prompts, rows = _probe_tokens(model)
    device, decoder = prompts[0].device, model.get_decoder()
    lengths = [len(row) for row in rows]
    layout = shared_prompt.PackedLayout([len(p) for p in prompts], lengths, [0, 0, 1, 1], device)
    hidden = shared_prompt.hidden_states(decoder, torch.cat(prompts + rows), layout.position_N, layout)
    border = sum(len(p) for p in prompts)
    before = [len(prompts[0]) - 1, len(prompts[0]) - 1, border - 1, border - 1]
    at, first = [], border
    for row, n in enumerate(lengths):  # decision 0 is predicted at the prompt's last token, decision t at token t - 1
        at += [before[row], *range(first, first + n - 1)]
        first += n
    packed = torch.log_softmax(tiled.logits(hidden[at], head), -1)
    error = float((packed - expected).abs().max())
    if error > ROUNDING[arithmetic(model)]:
        return error
    drawn = decode.generate(
        decoder, head, prompts, 2, law=categorical.Truncation(), limit=4, eos_ids=torch.tensor([-1], device=device),
        uniform_BT=torch.rand(4, 4, generator=torch.Generator().manual_seed(1)).to(device),
    )  # fmt: skip
    for i, token_T in enumerate(drawn.token_BT):
        own = _log_probs(model, prompts[i // 2], token_T).gather(-1, token_T[:, None])[:, 0]
        error = max(error, float((own - drawn.logp_BT[i]).abs().max()))
    return error
