"""A tiny fill-in policy, prompts whose truth is known, and a reward that scores every masked position by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from relgrad.core.types import Output, Prompt, Score
from relgrad.networks.diffusion_gpt.network import GPT, GPTConfig
from relgrad.policies.fill_in.policy import FillInPolicy
from relgrad.policies.fill_in.settings import Settings
from relgrad.text.masking import IGNORE
from relgrad.text.vocabulary import Vocabulary

VOCABULARY = Vocabulary.of_text("abcd")


def prompt(truth: str, holes: Sequence[int], id: int = 0) -> Prompt:
    """`truth` with the characters at `holes` masked."""
    ids = VOCABULARY.encode(truth)
    masked = [VOCABULARY.mask_id if i in holes else v for i, v in enumerate(ids)]
    columns = {
        "truth": truth,
        "truth_ids": ids,
        "masked_ids": masked,
        "label_ids": [v if i in holes else IGNORE for i, v in enumerate(ids)],
        "vocabulary": VOCABULARY.fingerprint,
    }
    return Prompt(VOCABULARY.decode(masked), columns, id)


PROMPTS = tuple(
    prompt(truth, holes, id)
    for id, (truth, holes) in enumerate(
        [("abcdab", (1, 3, 4)), ("ddccba", (0, 5)), ("abab", (2,)), ("cabdcabd", (1, 2, 3, 6)), ("bbaa", (0, 3))]
    )
)


def right(prompt: Prompt, outputs: Sequence[Output]) -> list[Score]:
    """Per masked position, 1 where the character is the true one; the value is their mean."""
    truth, masked = prompt.columns["truth_ids"], prompt.columns["masked_ids"]
    holes = [i for i, v in enumerate(masked) if v == VOCABULARY.mask_id]
    scores = [tuple(float(output.ids[i] == truth[i]) for i in holes) for output in outputs]
    return [Score(sum(s) / len(s), per_decision=s) for s in scores]


def policy(**settings: Any) -> FillInPolicy:
    """Random weights, large enough that probabilities differ; the reference is the start."""
    chosen = Settings(block_size=8, n_layer=1, n_head=2, n_embd=16, device="cpu", **settings)
    names = GPTConfig.model_fields.keys() & Settings.model_fields.keys()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT(GPTConfig(vocab_size=VOCABULARY.size, **{n: getattr(chosen, n) for n in names}))
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.4)
    made = FillInPolicy(model, VOCABULARY, chosen)
    made.freeze_reference()
    return made
