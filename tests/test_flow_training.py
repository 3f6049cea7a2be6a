"""FS-DFM's network and the losses of flow matching together: it learns answers and their ends, and a student needs few steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from relgrad.core.randomness import Draws
from relgrad.core.types import SupervisedLoss
from relgrad.laws import ctmc
from relgrad.laws.schedule import Scheduler
from relgrad.networks.fsdfm.network import DiT, DiTConfig
from relgrad.networks.weights.average import Ema
from relgrad.policies.flow.supervised.few_step import FewStep, few_step_loss
from relgrad.policies.flow.supervised.flow_matching import flow_matching_loss
from relgrad.policies.flow.supervised.noise_path import At, Network, Path
from relgrad.text import answer

LETTERS, EOS, MASK, SIZE = 6, 6, 7, 6
Task = Callable[[int, torch.Generator], tuple[list[list[int]], list[list[int]]]]


def copying(rows: int, source: torch.Generator) -> tuple[list[list[int]], list[list[int]]]:
    """One to four letters; the answer is the same letters."""
    lengths = torch.randint(1, 5, (rows,), generator=source).tolist()
    prompts = [torch.randint(LETTERS, (n,), generator=source).tolist() for n in lengths]
    return [[*p, EOS] for p in prompts], prompts


def choosing(rows: int, source: torch.Generator) -> tuple[list[list[int]], list[list[int]]]:
    """One letter; the answer is four or five times that letter or one of the next two: six answers, each all or nothing."""
    first, ahead, times = (torch.randint(k, (rows,), generator=source) for k in (LETTERS, 3, 2))
    return first[:, None].tolist(), [
        [int(a)] * (4 + int(n)) for a, n in zip((first + ahead) % LETTERS, times, strict=True)
    ]


def network(model: DiT) -> Network:
    def logits(x_BL: Tensor, time_B: Tensor, step_B: Tensor | None, at: At) -> Tensor:
        last_B = torch.zeros(len(x_BL), dtype=torch.int64).scatter_reduce(0, at[0], at[1], "amax")
        valid_BL = torch.arange(x_BL.shape[1]) <= last_B[:, None]
        logits_NV = model.logits(model.hidden(x_BL, time_B, step_B, valid_BL)[at])
        return logits_NV.masked_fill(torch.arange(MASK + 1) == MASK, -torch.inf)

    return logits


def fit(
    model: DiT,
    task: Task,
    updates: int,
    loss_of: Callable[[answer.Rows, Draws], SupervisedLoss],
    after: Callable[[], None] = lambda: None,
) -> None:
    texts, noise = torch.Generator().manual_seed(2), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    for update in range(updates):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, 5 * (1 - update / updates))
        prompts, answers = task(32, texts)
        loss, count, _ = loss_of(answer.rows(prompts, answers, SIZE, EOS), Draws.of(noise, 32))
        optimizer.zero_grad()
        (loss / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        after()


@torch.no_grad()
def write(model: DiT, prompts: list[list[int]], path: Path, steps: int, source: torch.Generator) -> list[list[int]]:
    """What the network writes at the editable positions, in so many steps of the mixture kernel."""
    rows = answer.rows(prompts, [[] for _ in prompts], SIZE, EOS)
    state = path.noise(
        rows.ids_BL, rows.editable_BL, torch.zeros(len(prompts)).double(), Draws.of(source, len(prompts))
    )
    for k in range(steps):
        time_B = torch.full((len(prompts),), k / steps).double()
        step_B = torch.full((len(prompts),), 1 / steps) if model.config.step_conditioned else None
        logits_NV = network(model)(state.x_BL, time_B.float(), step_B, state.at)
        hazard_N = ctmc.hazard("mixture", path.scheduler, time_B, 1 / steps)[state.at[0]]
        uniform_N2 = torch.rand(len(hazard_N), 2, generator=source)
        state = state.moved(ctmc.sample(path.law("mixture"), logits_NV, state.current_N, hazard_N, uniform_N2))
    return state.current_N.view(len(prompts), SIZE).tolist()


def fresh() -> DiT:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DiT(DiTConfig(vocab_size=MASK + 1, hidden=32, blocks=2, heads=2, cond_dim=16, length=16))


@pytest.mark.parametrize(
    ("source_K", "updates"),
    [
        pytest.param(torch.arange(MASK), 700, marks=pytest.mark.slow),
        pytest.param(torch.tensor([MASK]), 3000, marks=pytest.mark.slow),
    ],
    ids=["uniform", "mask"],
)
def test_a_network_learns_to_copy_and_where_to_stop(source_K: Tensor, updates: int) -> None:
    """By the cross-entropy. From a mask a batch says less, since only masked positions count, and learning takes longer."""
    model, path = fresh(), Path(Scheduler(), source_K)
    fit(
        model, copying, updates,
        lambda rows, draws: flow_matching_loss(
            network(model), rows.ids_BL, rows.editable_BL, path, "cross_entropy", draws
        ),
    )  # fmt: skip
    source = torch.Generator().manual_seed(1)
    prompts, answers = copying(200, source)
    written = write(model, prompts, path, 16, source)
    ended = [answer.until_end(ids, EOS) == wanted for ids, wanted in zip(written, answers, strict=True)]
    whole = [ids == wanted + [EOS] * (SIZE - len(wanted)) for ids, wanted in zip(written, answers, strict=True)]
    assert sum(ended) >= 0.95 * len(ended)
    assert sum(whole) >= 0.95 * len(whole)  # the end of sequence, up to the end of the row


def sound(prompt: list[int], ids: list[int]) -> bool:
    text = answer.until_end(ids, EOS)
    return len(text) in (4, 5) and len(set(text)) == 1 and (text[0] - prompt[0]) % LETTERS < 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rk4", "half_steps"])
def test_a_student_writes_in_eight_steps_as_well_as_its_teacher_in_64(kind: Any) -> None:
    """Six answers to every prompt, so that positions must agree with each other: the teacher needs many steps."""
    model, path = fresh(), Path(Scheduler(), torch.arange(MASK))
    fit(
        model, choosing, 1200,
        lambda rows, draws: flow_matching_loss(
            network(model), rows.ids_BL, rows.editable_BL, path, "cross_entropy", draws
        ),
    )  # fmt: skip

    def share(written_by: DiT, steps: int) -> float:
        source = torch.Generator().manual_seed(1)
        prompts, _ = choosing(1000, source)
        written = write(written_by, prompts, path, steps, source)
        return sum(sound(p, ids) for p, ids in zip(prompts, written, strict=True)) / len(prompts)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = model.student()
    average, settings = Ema(student.named_parameters(), 0.99), FewStep(finest=16, teacher=kind)

    def distil(rows: answer.Rows, draws: Draws) -> tuple[Tensor, int]:
        def teacher(x_BL: Tensor, time_B: Tensor, step_B: Tensor | None, at: At) -> Tensor:
            with average.in_place(student.named_parameters()):
                return network(student)(x_BL, time_B, step_B, at)

        own = network(student)
        return few_step_loss(own, teacher, rows.ids_BL, rows.editable_BL, path, settings, draws)

    teacher_shares = {steps: share(model, steps) for steps in (2, 4, 8, 64)}
    fit(student, choosing, 4000, distil, lambda: average.update(student.named_parameters()))
    with average.in_place(student.named_parameters()):
        student_shares = {steps: share(student, steps) for steps in (2, 4, 8)}
    print(f"teacher {teacher_shares}, student by {kind} {student_shares}")
    assert teacher_shares[64] > 0.9
    assert teacher_shares[2] < 0.6
    assert student_shares[2] > teacher_shares[2] + 0.1
    assert student_shares[4] > teacher_shares[4] + 0.03
    assert student_shares[8] > teacher_shares[64] - 0.03
