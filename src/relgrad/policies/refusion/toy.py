"""Tiny ReFusion policies for the contract tests: "a", "b" and the end, a few slots of one or two tokens, one to three steps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
from torch import Tensor

from relgrad.core.protocols import Toy
from relgrad.core.types import Output, Prompt, Rollouts
from relgrad.laws import categorical, tiled
from relgrad.networks.causal import load as causal
from relgrad.networks.refusion import tiny
from relgrad.policies.refusion.engine import Written
from relgrad.policies.refusion.open import Opened
from relgrad.policies.refusion.policy import RefusionPolicy
from relgrad.policies.refusion.settings import Lora, Settings
from relgrad.trajectories.trained_steps import all_steps

WORDS = ("<end>", "a", "b", tiny.MASK)
Step = tuple[tuple[int, tuple[int, ...]], ...]
"""What one step wrote: (slot, tokens) in the order of choice."""
Text = tuple[tuple[int, ...], float, list[Tensor]]
"""What a slot holds, its log-probability, and what each of its tokens could be."""


def tokenizer() -> Any:
    """A word-level tokenizer of WORDS."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS[:3])}, unk_token="b"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", pad_token="<end>")
    fast.add_special_tokens({"additional_special_tokens": [tiny.MASK]})
    return fast


def network() -> Any:
    """A random two-layer model with logits spread enough that mistakes show."""
    model = tiny.build_model(16, 2, len(WORDS), 3, num_attention_heads=4, num_key_value_heads=2, head_dim=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.4 if "embed" not in name else 1.0)
    return model


def make(**options: Any) -> Callable[[], Toy]:
    """A constructor of one toy with these settings."""

    def build() -> Toy:
        settings = Settings(**{"model": "toy", "device": "cpu", **options})
        model: Any = network()
        if settings.lora is not None:
            with torch.random.fork_rng():
                torch.manual_seed(1)
                model = adapted(model, settings.lora)
                for name, parameter in model.named_parameters():
                    if "lora_B" in name:
                        torch.nn.init.normal_(parameter, std=0.3)
        policy = RefusionPolicy(Opened(model, tokenizer(), 3, "toy"), settings)
        policy.freeze_reference()
        prompts = (Prompt("a b", id=0), Prompt("b", id=1), Prompt("a a b a", id=2))
        return Toy(
            policy,
            prompts,
            enumerate=lambda prompt: enumerate_all(policy, prompt),
            keys=keys,
            reward=reward,
            untouched=lambda rollouts: untouched_log_probs(policy, rollouts),
        )

    return build


def adapted(model: Any, lora: Lora) -> Any:
    return causal.add_lora(model, r=lora.r, alpha=lora.alpha, dropout=lora.dropout, targets=lora.target_modules)


def keys(rollouts: Rollouts) -> list[Hashable]:
    """Which slots were written when, with what, in every row."""
    trace = rollouts.trace
    parts = [trace["slot_BTK"].flatten(1), trace["token_BTKS"].flatten(1)]
    return [tuple(row) for row in torch.cat(parts, 1).tolist()]


def reward(output: Output) -> float:
    """How many "a"s there are, less a little for "b"s."""
    return float(output.text.split().count("a")) - 0.25 * output.text.split().count("b")


# ---------------------------------------------------------------------- by the library's own forward


class Plain:
    """The steps' laws by a model's own forward, one step of one trajectory at a time, without cache or shared input."""

    def __init__(self, policy: RefusionPolicy, model: Any) -> None:
        self.policy, self.model = policy, model
        self.size, self.ends = policy.schedule.size, set(policy.end_ids.tolist())

    def end(self, steps: list[Step]) -> int:
        """The position of the end after some steps."""
        at = [s * self.size + n for step in steps for s, tokens in step for n, i in enumerate(tokens) if i in self.ends]
        return min(at, default=self.policy.schedule.positions)

    def open(self, steps: list[Step]) -> list[int]:
        """The slots that the next step may write."""
        schedule, written = self.policy.schedule, {slot for step in steps for slot, _ in step}
        each = schedule.slots // schedule.serial
        first = schedule.blocks[len(steps)] * each
        return [s for s in range(first, first + each) if s not in written and s * self.size < self.end(steps)]

    def logits(self, prompt: Tensor, steps: list[Step], added: list[tuple[int, int]]) -> Tensor:
        """[len(added), V] at (position, token) behind the prompt and what the steps wrote."""
        ids, positions = prompt.tolist(), list(range(len(prompt)))
        sight = [list(range(n + 1)) for n in range(len(prompt))]
        for number, step in enumerate(steps):
            end = self.end(steps[:number])
            before = [n for n in range(len(ids)) if positions[n] <= len(prompt) + end]
            for slot, tokens in step:
                own: list[int] = []
                for n, token in enumerate(tokens):
                    own.append(len(ids))
                    ids.append(token)
                    positions.append(len(prompt) + slot * self.size + n)
                    sight.append([*before, *own])
        end = self.end(steps)
        before = [n for n in range(len(ids)) if positions[n] <= len(prompt) + end]
        for n, (position, token) in enumerate(added):
            ids.append(token)
            positions.append(len(prompt) + position)
            sight.append([*before, *range(len(ids) - 1 - n, len(ids))])
        visible = torch.full((1, 1, len(ids), len(ids)), torch.finfo(torch.float32).min)
        for row, columns in enumerate(sight):
            visible[0, 0, row, columns] = 0.0
        logits_LV = self.model(
            torch.tensor([ids]), position_ids=torch.tensor([positions]), attention_mask=visible
        ).logits[0]
        logits_LV[:, self.policy.network.mask_id] = -torch.inf
        return torch.as_tensor(logits_LV[-len(added) :])

    def planned(self, prompt: Tensor, steps: list[Step]) -> tuple[list[int], Tensor, Tensor]:
        """(the open slots, [M] their scores over the slots' temperature, [M, V] the logits at their first masks)."""
        slots = self.open(steps)
        masks = [(s * self.size + n, self.policy.network.mask_id) for s in slots for n in range(self.size)]
        first_MV = self.logits(prompt, steps, masks)[:: self.size]
        return slots, first_MV.log_softmax(-1).amax(-1) / self.policy.laws.slot_temperature, first_MV

    def order(self, score_M: Tensor, chosen: tuple[int, ...]) -> float:
        """Log-probability of choosing these entries in this order."""
        left, total = list(range(len(score_M))), 0.0
        for entry in chosen:
            total += float(score_M[entry] - score_M[left].logsumexp(-1))
            left.remove(entry)
        return total

    def token(self, logits_V: Tensor, support_V: Tensor | None = None) -> Tensor:
        """[V]: the log-probability of every token."""
        support_1V = None if support_V is None else support_V[None]
        return categorical.log_probs(logits_V[None], self.policy.laws.tokens, support_1V)[0]


@torch.no_grad()
def enumerate_all(policy: RefusionPolicy, prompt: Prompt) -> Rollouts:
    """Every trajectory with positive probability, by plain forward passes of the policy's own model."""
    plain, ids = Plain(policy, policy.model), policy.encode(prompt)
    paths: list[tuple[list[Step], list[float], list[Tensor]]] = [([], [], [])]
    for _ in range(policy.schedule.steps):
        paths = [
            ([*steps, step], [*logps, logp], [*supports, *drawn])
            for steps, logps, supports in paths
            for step, logp, drawn in successors(plain, ids, steps)
        ]
    return as_rollouts(policy, prompt, ids, paths)


def successors(plain: Plain, prompt: Tensor, steps: list[Step]) -> Iterator[tuple[Step, float, list[Tensor]]]:
    """Every step that can follow, its log-probability, and what each of its tokens could be."""
    policy = plain.policy
    if not plain.open(steps):
        yield (), 0.0, []
        return
    slots, score_M, first_MV = plain.planned(prompt, steps)
    texts = [list(slot_texts(plain, prompt, steps, slot, first_MV[m])) for m, slot in enumerate(slots)]
    count = min(policy.schedule.counts[len(steps)], len(slots))
    for chosen in itertools.permutations(range(len(slots)), count):
        order = plain.order(score_M, chosen)
        for written in itertools.product(*(texts[m] for m in chosen)):
            step = tuple((slots[m], tokens) for m, (tokens, _, _) in zip(chosen, written, strict=True))
            logp = order + sum(logp for _, logp, _ in written)
            yield step, logp, [support for _, _, drawn in written for support in drawn]


def slot_texts(plain: Plain, prompt: Tensor, steps: list[Step], slot: int, first_V: Tensor) -> Iterator[Text]:
    """Every text that a slot can have, its log-probability, and what each token could be."""
    law = plain.policy.laws.tokens
    going: list[Text] = [((), 0.0, [])]
    for number in range(plain.size):
        longer: list[Text] = []
        for tokens, logp, supports in going:
            added = [(slot * plain.size + n, token) for n, token in enumerate(tokens)]
            logits_V = plain.logits(prompt, steps, added)[-1] if added else first_V
            log_V, support_V = plain.token(logits_V), law.support(logits_V[None])[0]
            for token in (log_V > -torch.inf).nonzero()[:, 0].tolist():
                text = ((*tokens, token), logp + float(log_V[token]), [*supports, support_V])
                if token in plain.ends or number + 1 == plain.size:
                    yield text
                else:
                    longer.append(text)
        going = longer


def as_rollouts(
    policy: RefusionPolicy, prompt: Prompt, ids: Tensor, paths: list[tuple[list[Step], list[float], list[Tensor]]]
) -> Rollouts:
    """The paths as the policy's own rollouts."""
    schedule = policy.schedule
    slot_BTK = torch.full((len(paths), schedule.steps, schedule.widest), -1)
    token_BTKS = torch.full((*slot_BTK.shape, schedule.size), -1)
    for row, (steps, _, _) in enumerate(paths):
        for t, step in enumerate(steps):
            for k, (slot, tokens) in enumerate(step):
                slot_BTK[row, t, k] = slot
                token_BTKS[row, t, k, : len(tokens)] = torch.tensor(tokens)
    support = None
    if policy.laws.tokens.truncates:
        support = tiled.Support.pack(torch.stack([s for _, _, supports in paths for s in supports]))
    logp_BT = torch.tensor([logps for _, logps, _ in paths], dtype=torch.float64)
    written = Written(slot_BTK, token_BTKS, logp_BT, support)
    return policy._rollouts((prompt,), [ids], written, all_steps(len(paths), schedule.steps))


@torch.no_grad()
def untouched_log_probs(policy: RefusionPolicy, rollouts: Rollouts) -> Tensor:
    """[B, T]: every step's log-probability by the forward of a model as transformers builds it, with the weights of this moment."""
    plain = Plain(policy, plain_copy(policy))
    prompts = [policy.encode(prompt) for prompt in rollouts.prompts]
    logp_BT = torch.zeros(rollouts.mask_BT.shape)
    number = 0
    trace = rollouts.trace
    support = None
    if "support_index" in trace:
        whole = tiled.Support(trace["support_offset"], trace["support_index"])
        support = whole.dense(0, len(whole.offset_N1) - 1, len(WORDS))
    for row, group in enumerate(rollouts.group_B.tolist()):
        steps: list[Step] = []
        for t, (slots, texts) in enumerate(
            zip(trace["slot_BTK"][row].tolist(), trace["token_BTKS"][row].tolist(), strict=True)
        ):
            step = tuple((s, tuple(i for i in text if i >= 0)) for s, text in zip(slots, texts, strict=True) if s >= 0)
            if step:
                opened, score_M, first_MV = plain.planned(prompts[group], steps)
                total = plain.order(score_M, tuple(opened.index(slot) for slot, _ in step))
                for slot, tokens in step:
                    for n, token in enumerate(tokens):
                        added = [(slot * plain.size + m, tokens[m]) for m in range(n)]
                        logits_V = plain.logits(prompts[group], steps, added)[-1] if n else first_MV[opened.index(slot)]
                        total += float(plain.token(logits_V, None if support is None else support[number])[token])
                        number += 1
                logp_BT[row, t] = total
            steps.append(step)
    return logp_BT


def plain_copy(policy: RefusionPolicy) -> Any:
    """A model as transformers builds it, with the policy's weights of this moment, an adapter merged in by peft."""
    model = network().eval()
    if policy.settings.lora is None:
        model.load_state_dict(policy.model.state_dict())
        return model
    copy = adapted(model, policy.settings.lora)
    copy.load_state_dict(policy.model.state_dict())
    return copy.merge_and_unload().eval()


def toys() -> dict[str, Any]:
    """Tiny instances for the contract tests, by name."""
    return {
        "two-slots-a-step-lora-temperature": make(
            max_completion_length=4,
            slot_size=2,
            sampling_steps=1,
            slot_temperature=1.3,
            temperature=0.9,
            lora=Lora(r=2),
        ),
        "one-slot-a-step-top-p-average": make(
            max_completion_length=3, slot_size=1, sampling_steps=3, top_p=0.95, ema_decay=0.9
        ),
    }
