"""(c) The loss alone: log-probs and entropy of 4 x 512 positions over a vocabulary of 151,936, forward and backward.

Peak memory is what is added to a baseline that already holds the weights, the hidden states and their gradients. The
time is that of the second of two passes; the loss is the clipped surrogate at ratio 1, entropy is computed but not
differentiated, as in a GRPO step without entropy bonus.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from benchmarks import harness
from benchmarks import tables as shared
from benchmarks.systems import TUNED_COLUMNS, import_trl

TITLE = (
    "(c) the loss alone: 4 x 512 positions, vocabulary 151,936, float32, log-probs and entropy, forward and backward"
)
ARMS = ("relgrad", "trl", "trl-tuned")
VOCABULARY, ROWS = 151_936, 2048
HIDDEN = (256, 1024)


def measure(arm: str, options: dict[str, Any]) -> dict[str, Any]:
    """Seconds of the second pass, peak MB of both above the baseline, and the gradient's norm (equal for all arms)."""
    hidden_size = options["hidden"]
    function = _function(arm)
    before = harness.matmul_speed()
    torch.manual_seed(0)
    weight = (torch.randn(VOCABULARY, hidden_size) / hidden_size**0.5).requires_grad_()
    hidden = torch.randn(ROWS, hidden_size).requires_grad_()
    target = torch.randint(VOCABULARY, (ROWS,))
    advantage = torch.randn(4).repeat_interleave(ROWS // 4)
    weight.grad, hidden.grad = torch.ones_like(weight), torch.ones_like(hidden)
    weight.grad.zero_(), hidden.grad.zero_()
    baseline = harness.resident_mb()
    harness.reset_peak()
    for _ in range(2):
        weight.grad.zero_(), hidden.grad.zero_()
        wall, cpu = time.perf_counter(), time.process_time()
        entropy = _pass(function, hidden, weight, target, advantage)
        found = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    found |= {"above_mb": harness.peak_mb() - baseline, "baseline_mb": baseline}
    found |= {"entropy": float(entropy.double().mean())}
    found |= {"hidden_grad": float(hidden.grad.double().norm()), "weight_grad": float(weight.grad.double().norm())}
    after = harness.matmul_speed()
    found |= {key: (before[key] + after[key]) / 2 for key in before}
    with harness.count_flops() as flops:  # linear in the rows; counting the whole would add memory of its own
        _pass(function, hidden[: ROWS // 16], weight, target[: ROWS // 16], advantage[: ROWS // 16])
    found["gflop"] = 16 * flops.get_total_flops() / 1e9
    found["matmul_share"] = harness.matmul_share(found, torch.get_num_threads())
    return found


def _pass(function: Any, hidden: Tensor, weight: Tensor, target: Tensor, advantage: Tensor) -> Tensor:
    """Forward and backward once; the entropies."""
    logp, entropy = function(hidden, weight, target)
    ratio = (logp - logp.detach()).exp()
    loss = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
    loss.backward()
    return entropy.detach()


def _function(arm: str) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(hidden, weight, target) -> (log-probs, entropy) of one contender."""
    if arm == "relgrad":
        from relgrad.laws import tiled

        return lambda hidden, weight, target: tiled.log_probs(hidden, tiled.Head(weight), target)
    import_trl()
    from trl.trainer import utils

    columns = TUNED_COLUMNS if arm == "trl-tuned" else utils._CHUNKED_LOGPROB_CHUNK_SIZE

    def trl(hidden: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        apply = utils._ChunkedLogProbFunction.apply
        logp, entropy, *_ = apply(hidden, weight, None, target, 1.0, columns, None, 1.0, ("entropy",))
        return logp, entropy

    return trl


def run(*, quick: bool, threads: Sequence[int], say: Callable[[str], None]) -> list[dict[str, Any]]:
    cases = [{"hidden": size} for size in (HIDDEN[:1] if quick else HIDDEN)]
    return harness.take_turns("loss", cases, threads=threads, repeats=1 if quick else 3, say=say)


def tables(records: Sequence[dict[str, Any]]) -> list[Table]:
    found = []
    for case in sorted({(r["threads"], r["hidden"]) for r in records}):
        threads, hidden = case
        chosen = [r for r in records if (r["threads"], r["hidden"]) == case]
        table = Table(title=f"hidden {hidden}, {shared.threads(threads)}")
        for column in (
            "",
            "cpu-s",
            "±",
            "s",
            "of matmul speed",
            "peak above baseline, MB",
            "time / relgrad",
            "memory / relgrad",
            "entropy",
        ):
            table.add_column(column, justify="right")
        own = [r for r in chosen if r["arm"] == "relgrad"]
        for arm in ARMS:
            rows = [r for r in chosen if r["arm"] == arm]
            key = shared.clock(threads)
            table.add_row(
                arm,
                f"{harness.median(rows, 'cpu_s'):.2f}",
                f"{harness.spread(rows, key):.0%}",
                f"{harness.median(rows, 'wall_s'):.2f}",
                f"{harness.median(rows, 'matmul_share'):.0%}",
                f"{harness.median(rows, 'above_mb'):.0f}",
                f"{harness.median(rows, key) / harness.median(own, key):.2f}",
                f"{harness.median(rows, 'above_mb') / harness.median(own, 'above_mb'):.2f}",
                f"{rows[0]['entropy']:.6f}",
            )
        found.append(table)
    return found
