"""For architectures that do not run on the shared-prompt attention: transformers' own generate() and forward, same law.

A probe decides, once, at loading time: it draws two completions for each of two prompts on the shared-prompt engine, scores them
there, and compares both log-probabilities with the model's own forward pass, attention as it came. What it finds is said,
never silently worked around.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from relgrad.core.errors import RelgradError
from relgrad.core.types import CellScores, Rollouts
from relgrad.laws import categorical, tiled
from relgrad.networks.causal import decode, shared_prompt
from relgrad.networks.causal.decode import Generated

if TYPE_CHECKING:
    from relgrad.policies.autoregressive.policy import AutoregressivePolicy

TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3, torch.bfloat16: 0.25, torch.float16: 0.1}
"""Largest difference in log-probability (nats) that rounding explains, by the weights' dtype."""


def choose_engine(model: Any, wanted: str) -> tuple[str, str]:
    """("shared" or "transformers", why). Raises RelgradError when "shared" is insisted on and the probe fails."""
    if wanted == "transformers":
        return "transformers", "asked for"
    before = model.config._attn_implementation
    shared_prompt.register_attention()
    try:
        head = _plain_head(model)
        expected = _probe_forward(model)
        model.set_attn_implementation(shared_prompt.ATTENTION)
        error = _probe(model, head, expected)
        reason = f"log-probs differ by {error:.2g} nats" if error > TOLERANCE[model.dtype] else ""
    except Exception as problem:  # any failure of a foreign architecture means the same: it cannot run here
        reason = f"{type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else ''}"
    if not reason:
        return "shared", "probe passed"
    model.set_attn_implementation(before)
    if wanted == "shared":
        raise RelgradError(
            f"engine='shared': {type(model).__name__} does not run on the shared-prompt attention ({reason}); "
            "use engine: auto or transformers"
        )
    return "transformers", f"{type(model).__name__} does not run on the shared-prompt attention ({reason})"


def _plain_head(model: Any) -> tiled.Head:
    """The model's head. Raises NotImplementedError where the logits are not simply its product with the hidden states."""
    layer = model.get_output_embeddings()
    if getattr(model.config, "final_logit_softcapping", None) is not None:
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
    if error > TOLERANCE[model.dtype]:
        return error
    drawn = decode.generate(
        decoder, head, prompts, 2, law=categorical.Truncation(), limit=4, eos_ids=torch.tensor([-1], device=device),
        uniform_BT=torch.rand(4, 4, generator=torch.Generator().manual_seed(1)).to(device),
    )  # fmt: skip
    for i, token_T in enumerate(drawn.token_BT):
        own = _log_probs(model, prompts[i // 2], token_T).gather(-1, token_T[:, None])[:, 0]
        error = max(error, float((own - drawn.logp_BT[i]).abs().max()))
    return error


@torch.no_grad()
def generate(
    model: Any,
    prompts: Sequence[Tensor],
    per_prompt: int,
    *,
    law: categorical.Truncation,
    limit: int,
    eos_ids: Tensor,
    uniform_BT: Tensor,
) -> Generated:
    """As decode.generate, through `model.generate()`: a logits processor draws the token by our law and leaves no choice."""
    from transformers import GenerationConfig, LogitsProcessorList

    device = prompts[0].device
    repeated = [p for p in prompts for _ in range(per_prompt)]
    longest = max(len(p) for p in prompts)
    pad = int(eos_ids[0])
    ids = torch.stack([torch.cat([p.new_full((longest - len(p),), pad), p]) for p in repeated])
    lengths = torch.tensor([len(p) for p in repeated], device=device)
    attention = (torch.arange(longest, device=device)[None] >= longest - lengths[:, None]).long()
    drawn: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def draw(_: Tensor, scores: Tensor) -> Tensor:
        token, logp, support = categorical.sample(scores, law, uniform_N=uniform_BT[:, len(drawn)])
        drawn.append((token, logp, support))
        return torch.full_like(scores, -torch.inf).scatter_(1, token[:, None], 0.0)

    # what a model's own generation config asks for (suppressed tokens, penalties, minimum lengths) is no part of the law
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        model.generate(
            ids, attention_mask=attention, max_new_tokens=limit, do_sample=False, pad_token_id=pad,
            eos_token_id=eos_ids.tolist(), logits_processor=LogitsProcessorList([draw]),
        )  # fmt: skip
    finally:
        model.generation_config = own
    token_BT = torch.stack([t for t, _, _ in drawn], 1)
    is_end = torch.isin(token_BT, eos_ids)
    ended_B = is_end.any(1)
    length_B = torch.where(ended_B, is_end.int().argmax(1) + 1, token_BT.shape[1])
    inside = torch.arange(token_BT.shape[1], device=device)[None] < length_B[:, None]
    support = None
    if law.truncates:
        allowed_BTV = torch.stack([s for _, _, s in drawn if s is not None], 1)
        support = tiled.Support.pack(allowed_BTV[inside])
    logp_BT = torch.stack([p for _, p, _ in drawn], 1).float().masked_fill(~inside, 0.0)
    return Generated(token_BT.masked_fill(~inside, 0), logp_BT, length_B, ended_B, support)


def score(
    policy: AutoregressivePolicy,
    rollouts: Rollouts,
    cells_N2: Tensor,
    *,
    entropy: bool = False,
    reference_kl: bool = False,
    temperature: float | None = None,
) -> CellScores:
    """As AutoregressivePolicy.score: one right-padded batch, the model's own logits at the chosen cells only."""
    row_N, step_N = cells_N2[:, 0], cells_N2[:, 1]
    law = policy.truncation
    if temperature is not None:
        law = categorical.Truncation(temperature)
    support_NV = None
    if "support_index" in rollouts.trace and law.truncates:
        cell_of_BT = (rollouts.mask_BT.flatten().cumsum(0) - 1).view_as(rollouts.mask_BT)
        support = tiled.Support(rollouts.trace["support_offset"], rollouts.trace["support_index"])
        vocabulary = policy.causal_lm.get_output_embeddings().weight.shape[0]
        support_NV = support.take(cell_of_BT[row_N, step_N]).dense(0, len(row_N), vocabulary).to(policy.device)
    target_N1 = rollouts.trace["token_BT"][row_N, step_N].long().to(policy.device)[:, None]
    log_p_NV = categorical.log_probs(_logits(policy, rollouts, row_N, step_N), law, support_NV)
    finite_NV = log_p_NV.masked_fill(log_p_NV == -torch.inf, 0.0)
    entropy_N = -(log_p_NV.exp() * finite_NV).sum(-1) if entropy else None
    kl_N = None
    if reference_kl:
        with torch.no_grad(), policy.reference():
            log_q_NV = categorical.log_probs(_logits(policy, rollouts, row_N, step_N), law, support_NV)
        kl_N = (log_p_NV.exp() * (finite_NV - log_q_NV.masked_fill(log_p_NV == -torch.inf, 0.0))).sum(-1)
    return CellScores(log_p_NV.gather(-1, target_N1)[:, 0], entropy_N, kl_N)


def _logits(policy: AutoregressivePolicy, rollouts: Rollouts, row_N: Tensor, step_N: Tensor) -> Tensor:
    """Logits [N, V] that predict decision (row, step), from one padded forward over the rows concerned."""
    trace = rollouts.trace
    rows, index_N = row_N.unique(return_inverse=True)
    prompts = trace["prompt_ids"].long().split(trace["prompt_length_G"].tolist())
    row_prompts = [prompts[g] for g in rollouts.group_B[rows].tolist()]
    full = [
        torch.cat([p, trace["token_BT"][b, : int(trace["length_B"][b]) - 1].long()])
        for p, b in zip(row_prompts, rows.tolist(), strict=True)
    ]
    ids = pad_sequence(full, batch_first=True).to(policy.device)
    attention = pad_sequence([torch.ones_like(f) for f in full], batch_first=True).to(policy.device)
    at_N = torch.tensor([len(p) for p in row_prompts])[index_N] + step_N - 1
    # logits from the first chosen position on, where the model can leave the others out
    first, options = int(at_N.min()), {}
    if "logits_to_keep" in inspect.signature(policy.causal_lm.forward).parameters:
        options["logits_to_keep"] = ids.shape[1] - first
    logits_BLV = policy.causal_lm(input_ids=ids, attention_mask=attention, use_cache=False, **options).logits
    at_N = at_N - (first if options else 0)
    return logits_BLV[index_N.to(policy.device), at_N.to(policy.device)]
