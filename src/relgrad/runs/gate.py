"""The gate of a stage: whether what it ended with is what its recipe asks for (`evaluation.gate`).

The gain has to be shown, not only measured: the lower end of the 95 % interval of the paired difference is compared, since a stage
that changes nothing measures a gain above zero half of the time.
"""

from __future__ import annotations

import math

from relgrad.core.errors import GateFailed
from relgrad.core.run_folder import RunDir
from relgrad.runs.evaluations import records_of
from relgrad.stages.settings import Gate, Stage


def require_passed(folder: RunDir, stage: Stage) -> None:
    """Raise GateFailed, naming every figure that is not what the gate asks for, for a stage that has ended."""
    gate = stage.evaluation.gate
    if gate is None:
        return
    if problems := _problems(folder, gate):
        raise GateFailed(
            f"{folder.root}: the gate is not passed: {'; '.join(problems)}. Everything is in the folder; change the recipe "
            "(learning rate, steps, grpo.beta), or evaluation.gate, before a longer run"
        )


def _problems(folder: RunDir, gate: Gate) -> list[str]:
    """In words, with the values; none where the gate is passed."""
    final = [record for record in records_of(folder) if "difference" in record]
    if not final:
        return ["there is no evaluation before and after training: give rewards to evaluate by"]
    last, problems = final[-1], []
    gain, low, kl = _number(last["difference"]), _number(last.get("difference_low")), _number(last.get("kl"))
    if gate.min_gain is not None and not low > gate.min_gain:
        problems.append(
            f"the score gained {gain:+.4g}, at least {low:+.4g} with 95 % confidence, and more than {gate.min_gain:g} is asked for "
            "(min_gain)"
        )
    if gate.max_kl is not None and not kl <= gate.max_kl:
        measured = "was not measured (set grpo.beta)" if math.isnan(kl) else f"is {kl:.4g} nats per decision"
        problems.append(f"the KL to the start {measured}, and at most {gate.max_kl:g} is asked for (max_kl)")
    return problems


def _number(value: float | None) -> float:
    return math.nan if value is None else value
