"""Tokens per second of decoding on one device: relgrad's shared engine, and the three ways in which transformers decodes.

    relgrad              `Policy.sample`, from prompts as texts to rollouts with texts and log-probs
    generate             transformers' `generate` with its growing cache
    generate, static     `generate` with a cache of fixed size, which transformers compiles on a CUDA device
    generate_batch       transformers' continuous batching, its cache just large enough for all rows at once

All run the same weights without an adapter and draw from the whole distribution at temperature 1, and none may end before its
last token. The matrix-product FLOPs are those that the written tokens need of the weights, counted on one token, alike for all:
the share of the matmul speed is useful work.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch

from benchmarks import harness
from benchmarks.gpu_device import Peak, clocked, matmul_speed
from relgrad.core.errors import RelgradError
from relgrad.core.types import Prompt
from relgrad.networks.causal import load as causal
from relgrad.policies import autoregressive
from relgrad.policies.autoregressive.build import compose

ARMS = ("relgrad", "generate", "generate, static", "generate_batch")
PAGE = 256
"""Tokens in a page of the cache of continuous batching, transformers' own default."""


class Decode(NamedTuple):
    """`group_size` completions of exactly `length` tokens for each of the prompts, which all have the same number of tokens."""

    model: str
    prompts: Sequence[Prompt]
    device: str
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    group_size: int = 8
    length: int = 256
    repeats: int = 1

    @property
    def tokens(self) -> int:
        """What is written in one call."""
        return len(self.prompts) * self.group_size * self.length


def measured(arm: str, job: Decode) -> dict[str, Any]:
    """Seconds of one call, tokens per second, FLOPs and peak memory. Raises RelgradError where other work was done."""
    model, write = writer(arm, job)
    gflop = job.tokens * token_gflop(model)
    _checked(write(), job.tokens, arm)
    before, peak = matmul_speed(job.device, job.dtype), Peak(job.device)
    seconds = statistics.median(clocked(write, job.device) for _ in range(job.repeats))
    peak_gb = peak.gb()
    speed = (before + matmul_speed(job.device, job.dtype)) / 2
    return {
        "seconds": seconds,
        "tokens": job.tokens,
        "tokens_per_s": job.tokens / seconds,
        "dtype": job.dtype,
        "gflop": gflop,
        "gemm_gflops": speed,
        "matmul_share": gflop / seconds / speed,
        "peak_gb": peak_gb,
    }


def writer(arm: str, job: Decode) -> tuple[Any, Callable[[], int]]:
    """(the model, a call that writes everything once and says how many tokens it wrote)."""
    model = causal.load_model(job.model, dtype=job.dtype).to(job.device).eval()
    tokenizer = causal.load_tokenizer(job.model)
    if arm == "relgrad":
        return model, _relgrad(model, tokenizer, job)
    model.generation_config = generation_config(model, job, static=arm == "generate, static")
    ids = [tokenizer(prompt.text).input_ids for prompt in job.prompts]
    return model, (_continuous if arm == "generate_batch" else _generate)(model, ids, job)


def _relgrad(model: Any, tokenizer: Any, job: Decode) -> Callable[[], int]:
    settings = autoregressive.Settings(
        model=job.model, dtype=job.dtype, max_completion_length=job.length, engine="shared", device=job.device
    )
    policy = compose(model, tokenizer, settings)
    # an id beyond the vocabulary is never drawn
    policy.eos_ids = [model.config.vocab_size]
    draw = torch.Generator().manual_seed(0)
    return lambda: int(policy.sample(job.prompts, job.group_size, draw).mask_BT.sum())


def generation_config(model: Any, job: Decode, *, static: bool) -> Any:
    """How transformers draws: everything at temperature 1, no end-of-sequence token."""
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=job.length,
        eos_token_id=None,
        pad_token_id=model.config.pad_token_id or 0,
        cache_implementation="static" if static else None,
    )


def _generate(model: Any, ids: Sequence[Sequence[int]], job: Decode) -> Callable[[], int]:
    prompt_GP = torch.tensor(ids, device=job.device)

    def write() -> int:
        out_BT = model.generate(
            prompt_GP, attention_mask=torch.ones_like(prompt_GP), num_return_sequences=job.group_size
        )
        return int(out_BT[:, prompt_GP.shape[1] :].numel())

    return write


def _continuous(model: Any, ids: Sequence[Sequence[int]], job: Decode) -> Callable[[], int]:
    from transformers import ContinuousBatchingConfig

    rows = [list(row) for row in ids for _ in range(job.group_size)]
    pages = math.ceil((len(rows[0]) + job.length) / PAGE) + 1
    cache = ContinuousBatchingConfig(
        page_size=PAGE, num_blocks=len(rows) * pages, max_batch_tokens=len(rows) * len(rows[0])
    )

    def write() -> int:
        # its manager and captured graphs stay from call to call
        results = model.generate_batch(
            rows,
            generation_config=model.generation_config,
            continuous_batching_config=cache,
            persistent_manager=True,
        )
        errors = [result.error for result in results.values() if result.error]
        if errors:
            raise RelgradError(f"generate_batch: {errors[0]}")
        return sum(len(result.generated_tokens) for result in results.values())

    return write


def _checked(tokens: int, expected: int, arm: str) -> None:
    if tokens != expected:
        raise RelgradError(f"{arm} wrote {tokens} tokens instead of {expected}: the speeds cannot be compared")


def token_gflop(model: Any) -> float:
    """GFLOP of the matrix products of one token's forward pass, as executed for a row of one token."""
    token_11 = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    with torch.no_grad(), harness.count_flops() as flops:
        model(input_ids=token_11, use_cache=False)
    return flops.get_total_flops() / 1e9
