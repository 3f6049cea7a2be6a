"""How likely a causal language model finds the completed text: its mean log-probability, in nats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch.nn import functional

from relgrad.core.errors import RelgradError
from relgrad.core.protocols import Reward
from relgrad.core.settings import NamesFiles, Strict
from relgrad.core.types import Output, Prompt, Score
from relgrad.networks.causal import load as causal
from relgrad.networks.weights import device
from relgrad.rewards._columns import unscored
from relgrad.text.corpus import BUILTIN, load_corpus
from relgrad.text.ngram import NGram

NGRAM = "ngram"
Likelihood = tuple[float, int]
"""Summed log-probability in nats, and the number of tokens it was summed over."""

Scorer = Callable[[Sequence[str]], list[Likelihood | str]]
"""Texts in; of each its likelihood, or the reason why it has none."""


class Settings(Strict):
    """The language model, and what its log-probability is divided by.

    model       "ngram", or a causal model as policies name it: folder, hub name, .gguf file, bundled name
    per         "token", or "character": comparable between tokenizers, and between completions that they cut differently
    order, text of the n-gram model: characters of an n-gram, and the corpus it is fitted to
    batch_size  rows of one forward pass; does not change the scores
    """

    model: Annotated[str, NamesFiles((NGRAM,), or_hub=True)] = NGRAM
    per: Literal["token", "character"] = "token"
    order: int = Field(5, ge=1)
    text: Annotated[str, NamesFiles((BUILTIN,))] = BUILTIN
    tokenizer: Annotated[str | None, NamesFiles(or_hub=True)] = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_size: int = Field(8, ge=1)
    trust_remote_code: bool = False
    device: str = "auto"


def build(settings: Settings) -> Reward:
    """Scores are nats, 0 or less. A token of the n-gram model is a character.

    A causal model scores every token after the first: of the first too where its tokenizer puts a start sign before it.
    Special tokens are context and not scored. A text of fewer than 2 tokens, or of more than the model's context, is
    unscored. Raises RelgradError for a model, tokenizer or text that cannot be loaded.
    """
    score = _ngram(settings) if settings.model == NGRAM else Causal(settings)

    def language_model(prompt: Prompt, outputs: Sequence[Output]) -> list[Score]:
        # equal texts are scored once: beside other rows they could differ by rounding, and a flat group would not be flat
        texts = list(dict.fromkeys(output.text for output in outputs))
        score_of = {text: _score(text, answer, settings.per) for text, answer in zip(texts, score(texts), strict=True)}
        return [score_of[output.text] for output in outputs]

    return language_model


def _score(text: str, answer: Likelihood | str, per: str) -> Score:
    if isinstance(answer, str):
        return unscored(answer)
    total, tokens = answer
    return Score(total / (tokens if per == "token" else len(text)))


def _ngram(settings: Settings) -> Scorer:
    model = NGram("\n".join(load_corpus(settings.text).train), settings.order)

    def score(texts: Sequence[str]) -> list[Likelihood | str]:
        return [too_short(len(t)) or (sum(model.log_probabilities(t)), len(t)) for t in texts]

    return score


def too_short(tokens: int) -> str:
    """The reason why a text of so few tokens has no score; empty where it has one."""
    return f"a text of {tokens} tokens; a language model scores 2 or more" if tokens < 2 else ""


class Causal:
    """A `Scorer`: a causal model of transformers, in batches padded on the right (which causal attention does not see)."""

    def __init__(self, settings: Settings) -> None:
        self.model: Any = causal.load_model(
            settings.model, dtype=settings.dtype, trust_remote_code=settings.trust_remote_code
        )
        self.tokenizer = causal.load_tokenizer(
            settings.tokenizer or settings.model, trust_remote_code=settings.trust_remote_code
        )
        self.device = device.choose(settings.device)
        self.model.to(self.device)
        self.limit = causal.context(self.model.config.get_text_config())
        self.entries = self.model.get_input_embeddings().num_embeddings
        self.settings = settings

    def __call__(self, texts: Sequence[str]) -> list[Likelihood | str]:
        encoded = [self._encode(text) for text in texts]
        rows = [row for row in encoded if not isinstance(row, str)]
        size = self.settings.batch_size
        scored = iter([s for start in range(0, len(rows), size) for s in self._forward(rows[start : start + size])])
        return [row if isinstance(row, str) else next(scored) for row in encoded]

    def _encode(self, text: str) -> tuple[list[int], list[bool]] | str:
        """(ids, which of them are scored), or the reason why the text cannot be."""
        encoded = self.tokenizer(text, return_special_tokens_mask=True, verbose=False)
        ids, special = list(encoded["input_ids"]), encoded["special_tokens_mask"]
        if ids and max(ids) >= self.entries:
            raise RelgradError(
                f"reward 'language_model': the tokenizer gives id {max(ids)}, but model {self.settings.model!r} has "
                f"{self.entries} ids; name the model's own tokenizer"
            )
        if self.limit is not None and len(ids) > self.limit:
            return f"a text of {len(ids)} tokens; the language model takes {self.limit}"
        return too_short(len(ids) - sum(special)) or (ids, [i > 0 and not s for i, s in enumerate(special)])

    @torch.inference_mode()
    def _forward(self, rows: Sequence[tuple[list[int], list[bool]]]) -> list[Likelihood]:
        ids_BL = _padded([torch.tensor(ids) for ids, _ in rows]).to(self.device)
        scored_BL = _padded([torch.tensor(scored) for _, scored in rows]).to(self.device)
        valid_BL = _padded([torch.ones(len(ids), dtype=torch.int64) for ids, _ in rows]).to(self.device)
        logits_BLV = self.model(input_ids=ids_BL, attention_mask=valid_BL).logits
        logits_NV = logits_BLV[:, :-1][scored_BL[:, 1:]].float()
        logp_BL = torch.zeros(scored_BL[:, 1:].shape, dtype=torch.float64, device=self.device)
        logp_BL[scored_BL[:, 1:]] = -functional.cross_entropy(
            logits_NV, ids_BL[:, 1:][scored_BL[:, 1:]], reduction="none"
        ).double()
        return list(zip(logp_BL.sum(-1).tolist(), scored_BL.sum(-1).tolist(), strict=True))


def _padded(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """[B, L], zeros on the right."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
