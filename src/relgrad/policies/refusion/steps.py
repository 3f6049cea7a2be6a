"""Planning steps described to an estimator (estimators/interface.py), in the very layout in which they were written.

One row of input holds all steps of a trajectory that are asked for:

    [prompt] [slots of all steps, in the order of writing] [masks of one step's plan] [masks of another's] ...

What sees what (networks/refusion/layout.py) is as it was while writing, so one pass scores many steps of many trajectories. The
choices of a step, each a categorical one given those before it: its slots, and its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from relgrad.core.types import Rollouts
from relgrad.estimators.interface import Wanted
from relgrad.laws import plackett_luce, tiled
from relgrad.networks.refusion.layout import PADDING, PLAN, PROMPT, Places
from relgrad.networks.refusion.network import SlotNetwork
from relgrad.objectives.divergences import categorical_kl
from relgrad.policies.refusion.engine import Laws
from relgrad.policies.refusion.schedule import Schedule, ends, written_before


class State(NamedTuple):
    """What some trajectories had come to before each of their steps.

    slot_RTK, token_RTKS  what each step wrote; -1 for nothing
    end_RT1               the end as it was known before each step, and after the last
    open_RTN              which slots each step could write
    """

    slot_RTK: Tensor
    token_RTKS: Tensor
    end_RT1: Tensor
    open_RTN: Tensor

    @staticmethod
    def of(slot_RTK: Tensor, token_RTKS: Tensor, schedule: Schedule, end_ids: Tensor) -> State:
        end_RT1 = ends(slot_RTK, torch.isin(token_RTKS, end_ids), schedule.positions)
        written_RTN = written_before(slot_RTK, schedule.slots)
        open_RTN = [schedule.open(t, written_RTN[:, t], end_RT1[:, t]) for t in range(schedule.steps)]
        return State(slot_RTK, token_RTKS, end_RT1, torch.stack(open_RTN, 1))


class Choices(NamedTuple):
    """The choices of N steps: Q slots, then A tokens. See estimators/interface.py.

    places                 the network's input
    row_F, place_F         first masks of the slots that were open, step by step
    row_A, place_A         where the network speaks for each token
    decision_F, open_F     of every first mask: the step, and its number among the step's
    chosen_NK              the slots of each step, by that number
    target_A, support      the tokens, and what they could be
    """

    places: Places
    row_F: Tensor
    place_F: Tensor
    row_A: Tensor
    place_A: Tensor
    decision_F: Tensor
    open_F: Tensor
    chosen_NK: Tensor
    target_A: Tensor
    support: tiled.Support | None
    decision_M: Tensor
    free_N: Tensor


class Steps:
    """The network, the schedule and the laws of a policy; `laws` says what they are at this moment."""

    def __init__(
        self, network: SlotNetwork, schedule: Callable[[int], Schedule], laws: Callable[[], Laws], end_ids: Tensor
    ) -> None:
        self.network, self.schedule, self.laws, self.end_ids = network, schedule, laws, end_ids
        self.device = network.device

    def choices(self, rollouts: Rollouts, cells_N2: Tensor, wanted: Wanted) -> Choices:
        """The choices of the steps (row, step) given; all of them depend on the network."""
        trace, schedule = rollouts.trace, self.schedule(rollouts.mask_BT.shape[1])
        row_R, local_N = torch.unique(cells_N2[:, 0], return_inverse=True)
        step_N = cells_N2[:, 1]
        token_RTKS = trace["token_BTKS"][row_R].long()
        state = State.of(trace["slot_BTK"][row_R].long(), token_RTKS, schedule, self.end_ids)
        prompts = trace["prompt_ids"].long().split(trace["prompt_length_G"].tolist())
        prompt_R = [prompts[group] for group in rollouts.group_B[row_R].tolist()]
        elements = _elements(state, schedule, prompt_R, local_N, step_N, self.network.mask_id)
        places, place_E = _placed(elements, len(row_R))
        first_place_FN, token_place = _indices(elements, place_E, state, local_N, step_N, schedule)
        open_NN = state.open_RTN[local_N, step_N]
        decision_F, slot_F = open_NN.nonzero(as_tuple=True)
        number_NN = open_NN.cumsum(-1) - 1
        slot_NK = state.slot_RTK[local_N, step_N]
        chosen_NK = torch.where(slot_NK < 0, -1, number_NN.gather(1, slot_NK.clamp(min=0)))
        token_NKS = state.token_RTKS[local_N, step_N]
        drawn_NKS = token_NKS >= 0
        decision_A, slot_A, number_A = drawn_NKS.nonzero(as_tuple=True)
        before_A = token_place[local_N[decision_A], step_N[decision_A], slot_A, (number_A - 1).clamp(min=0)]
        at_mask_A = first_place_FN[decision_A, slot_NK[decision_A, slot_A]]
        decision_Q = (chosen_NK >= 0).nonzero()[:, 0]
        return Choices(
            places=places,
            row_F=local_N[decision_F],
            place_F=first_place_FN[decision_F, slot_F],
            row_A=local_N[decision_A],
            place_A=torch.where(number_A == 0, at_mask_A, before_A),
            decision_F=decision_F,
            open_F=number_NN[decision_F, slot_F],
            chosen_NK=chosen_NK,
            target_A=token_NKS[drawn_NKS],
            support=self._support(rollouts, cells_N2, drawn_NKS),
            decision_M=torch.cat([decision_Q, decision_A]),
            free_N=torch.zeros(len(cells_N2), dtype=torch.float64),
        )

    def _support(self, rollouts: Rollouts, cells_N2: Tensor, drawn_NKS: Tensor) -> tiled.Support | None:
        """What each of the steps' tokens could be."""
        if "support_index" not in rollouts.trace:
            return None
        drawn_BTKS = rollouts.trace["token_BTKS"] >= 0
        number_BTKS = (drawn_BTKS.flatten().cumsum(0) - 1).view_as(drawn_BTKS)
        number_A = number_BTKS[cells_N2[:, 0], cells_N2[:, 1]][drawn_NKS]
        whole = tiled.Support(rollouts.trace["support_offset"], rollouts.trace["support_index"])
        return whole.take(number_A).to(self.device)

    def hidden(self, choices: Choices) -> Tensor:
        """[F + A, H]: the network's output at first masks, then where tokens are drawn."""
        hidden_RWH = self.network.hidden(choices.places)
        row = torch.cat([choices.row_F, choices.row_A]).to(self.device)
        return hidden_RWH[row, torch.cat([choices.place_F, choices.place_A]).to(self.device)]

    def terms(
        self, choices: Choices, hidden: Tensor, reference_hidden: Tensor | None, wanted: Wanted
    ) -> Sequence[Tensor]:
        """Log-probability, entropy where wanted, exact KL where wanted, each [Q + A]."""
        masks, laws = len(choices.row_F), self.laws()
        head = self.network.head(laws.tokens.temperature)
        target_A = choices.target_A.to(self.device)
        logp_A, entropy_A = tiled.log_probs(hidden[masks:], head, target_A, support=choices.support)
        scores_NJ = self._scores(choices, hidden[:masks], laws)
        logp_QJ, choice_Q, _ = plackett_luce.choices(scores_NJ, choices.chosen_NK.to(self.device))
        terms = [torch.cat([logp_QJ.gather(-1, choice_Q[:, None])[:, 0], logp_A])]
        if wanted.entropy:
            terms.append(torch.cat([plackett_luce.entropy(logp_QJ), entropy_A]))
        if wanted.reference is not None and reference_hidden is not None:
            with torch.no_grad(), wanted.reference():
                laws = self.laws()
                reference_head = self.network.head(laws.tokens.temperature)
                reference_head = reference_head._replace(weight_VH=reference_head.weight_VH.data)
                scores_NJ = self._scores(choices, reference_hidden[:masks], laws)
                reference_QJ, _, _ = plackett_luce.choices(scores_NJ, choices.chosen_NK.to(self.device))
            kl_A = tiled.reference_kl(hidden[masks:], head, reference_hidden[masks:], reference_head, choices.support)
            terms.append(torch.cat([categorical_kl(logp_QJ, reference_QJ), kl_A]))
        return terms

    def _scores(self, choices: Choices, hidden_FH: Tensor, laws: Laws) -> Tensor:
        """[N, J]: the scores of each step's open slots over the slots' temperature, -inf behind the last."""
        score_F = self.network.confidence(hidden_FH) / laws.slot_temperature
        width = int(choices.open_F.max()) + 1 if len(choices.open_F) else 1
        scores_NJ = score_F.new_full((len(choices.chosen_NK), width), -torch.inf)
        return scores_NJ.index_put((choices.decision_F.to(self.device), choices.open_F.to(self.device)), score_F)


# ---------------------------------------------------------------------- one row of input


class _Elements(NamedTuple):
    """What the rows of input are made of, in one list: first all prompts, then all that was written, then all masks.

    row_E      which row it belongs to
    column     the columns of `Places`, flat
    prompts    how many of these are prompts'
    written_C  row, step, number of the slot and number in it of everything written
    """

    row_E: Tensor
    column: Places
    prompts: int
    written_C: tuple[Tensor, ...]


def _elements(
    state: State, schedule: Schedule, prompts: Sequence[Tensor], local_N: Tensor, step_N: Tensor, mask_id: int
) -> _Elements:
    """The prompts, what was written up to the last step asked for of each row, and the masks of the steps asked for."""
    rows, size = len(prompts), schedule.size
    start_R = torch.tensor([len(prompt) for prompt in prompts])
    last_R = torch.zeros(rows, dtype=torch.int64).scatter_reduce(0, local_N, step_N, "amax")
    limit_RT = start_R[:, None] + state.end_RT1[:, :-1]
    row_P = torch.arange(rows).repeat_interleave(start_R)
    position_P = torch.cat([torch.arange(len(prompt)) for prompt in prompts])
    token_P = torch.cat(list(prompts))

    needed_RT = torch.arange(schedule.steps) <= last_R[:, None]
    written_C = ((state.token_RTKS >= 0) & needed_RT[..., None, None]).nonzero(as_tuple=True)
    row_C, step_C, slot_C, number_C = written_C
    position_C = start_R[row_C] + state.slot_RTK[row_C, step_C, slot_C] * size + number_C

    cell_L, offset_L = state.open_RTN[local_N, step_N].repeat_interleave(size, 1).nonzero(as_tuple=True)
    row_L, step_L = local_N[cell_L], step_N[cell_L]
    position_L = start_R[row_L] + offset_L
    column = Places(
        token_RW=torch.cat([token_P, state.token_RTKS[written_C], torch.full_like(row_L, mask_id)]),
        position_RW=torch.cat([position_P, position_C, position_L]),
        step_RW=torch.cat([torch.full_like(row_P, PROMPT), step_C, step_L]),
        thread_RW=torch.cat([torch.full_like(row_P, PROMPT), slot_C, torch.full_like(row_L, PLAN)]),
        limit_RW=torch.cat([position_P, limit_RT[row_C, step_C], limit_RT[row_L, step_L]]),
        kept_RW=torch.arange(len(row_P) + len(row_C) + len(row_L)) < len(row_P) + len(row_C),
    )
    return _Elements(torch.cat([row_P, row_C, row_L]), column, len(row_P), written_C)


def _placed(elements: _Elements, rows: int) -> tuple[Places, Tensor]:
    """(the rows of input, padded behind; at which place of its row each element stands)."""
    order_E = elements.row_E.argsort(stable=True)
    count_R = torch.bincount(elements.row_E, minlength=rows)
    before_R = count_R.cumsum(0) - count_R
    place_E = torch.empty_like(order_E)
    place_E[order_E] = torch.arange(len(order_E)) - before_R[elements.row_E[order_E]]
    width = int(count_R.max())

    def rows_of(column_E: Tensor, padding: int) -> Tensor:
        padded_RW = torch.full((rows, width), padding, dtype=column_E.dtype)
        padded_RW[elements.row_E, place_E] = column_E
        return padded_RW

    paddings = (0, 0, PADDING, PADDING, 0, False)
    return Places(*(rows_of(c, p) for c, p in zip(elements.column, paddings, strict=True))), place_E


def _indices(
    elements: _Elements, place_E: Tensor, state: State, local_N: Tensor, step_N: Tensor, schedule: Schedule
) -> tuple[Tensor, Tensor]:
    """([N, slots] the place of each open slot's first mask, [R, T, K, S] the place of each token); others hold 0."""
    masks = elements.prompts + len(elements.written_C[0])
    token_place = torch.zeros(state.token_RTKS.shape, dtype=torch.int64)
    token_place[elements.written_C] = place_E[elements.prompts : masks]
    open_NL = state.open_RTN[local_N, step_N].repeat_interleave(schedule.size, 1)
    mask_place_NL = torch.zeros(open_NL.shape, dtype=torch.int64)
    mask_place_NL[open_NL] = place_E[masks:]
    return mask_place_NL[:, :: schedule.size], token_place
