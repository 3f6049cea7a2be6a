"""The autoregressive policy: any Hugging Face causal language model; one decision is one token.

    log pi(token_t | prompt, tokens before t) = log softmax(logits / temperature)[token_t]  over the recorded support

It is composed: a law (`laws/categorical.py`), an engine that draws completions and scores them under it (`engine.py`), a keeper
of the weights (`networks/weights/keeper.py`), an encoder of texts (`encode.py`) and the modes of the model's layers (`modes.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from relgrad.core.errors import RelgradError
from relgrad.core.protocols import ServedLaw
from relgrad.core.randomness import Draws, Randomness
from relgrad.core.types import CellScores, Example, Output, Prompt, Rollouts, Stop, SupervisedLoss, Written
from relgrad.laws.categorical import Truncation
from relgrad.laws.precision import ROUNDING
from relgrad.networks.causal import gguf_file
from relgrad.networks.causal import load as causal
from relgrad.networks.causal.adapted import bare, is_adapted, load
from relgrad.networks.causal.decode import Generated
from relgrad.networks.causal.encode import Encoder
from relgrad.networks.causal.modes import Modes
from relgrad.networks.causal.saved import save_base
from relgrad.networks.weights.facts import count_parameters, truncation_facts
from relgrad.networks.weights.keeper import Keeper
from relgrad.networks.weights.seeded_dropout import seeded
from relgrad.policies.autoregressive.engine import Engine, Reference, arithmetic
from relgrad.policies.autoregressive.served import generated_elsewhere, require_servable
from relgrad.policies.autoregressive.settings import Settings


class AutoregressivePolicy:
    """See the module. Trace: prompt_ids (flat), prompt_length_G, token_BT, length_B and, truncated, the support."""

    law: Literal["exact", "surrogate"] = "exact"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        settings: Settings,
        engine: Engine,
        base: str | Path,
        notes: tuple[str, ...] = (),
    ) -> None:
        """`model` is one of transformers, or one that peft has put an adapter on; `engine` runs it. Raises RelgradError.

        `base` is where the model is from, the adapter apart: the recipe's name for it, or the folder of an earlier stage.
        """
        self.model, self.tokenizer, self.settings = model.eval(), tokenizer, settings
        self.engine, self.base, self.notes = engine, base, notes
        self.version = 0
        self.max_decisions = settings.max_completion_length
        self.start_law = self.truncation = Truncation(settings.temperature, settings.top_k, settings.top_p)
        self.weights = Keeper(model)
        self.causal_lm = bare(model)
        self.device = next(model.parameters()).device
        entries = self.causal_lm.get_input_embeddings().weight.shape[0]
        if foreign := [token for token in settings.eos_token_ids if not 0 <= token < entries]:
            raise RelgradError(
                f"policy.eos_token_ids: model {settings.model!r} cannot write id {foreign[0]}; it has 0 to {entries - 1}"
            )
        self.eos_ids = causal.eos_ids(self.causal_lm, tokenizer, settings.eos_token_ids)
        if not self.eos_ids:
            raise RelgradError(f"model {settings.model!r} names no end-of-sequence id: set policy.eos_token_ids")
        # a target outside of a chat is closed with the tokenizer's own end of sequence, else with the model's first
        end_id = self.eos_ids[0] if tokenizer.eos_token_id is None else int(tokenizer.eos_token_id)
        self.encoder = Encoder(
            tokenizer,
            settings,
            causal.context(self.causal_lm.config),
            entries=entries,
            end_ids=tuple(self.eos_ids),
            end_id=end_id,
            template_arguments=settings.chat_template_kwargs,
        )
        self.modes = Modes(self.causal_lm, recompute=settings.gradient_checkpointing)

    @property
    def facts(self) -> dict[str, str]:
        """See protocols.Described."""
        settings = self.settings
        longest = f"at most {settings.max_completion_length} tokens, one after the other"
        facts = {"Parameters": f"{count_parameters(self.model):,}", "Writes": longest}
        return facts | truncation_facts(settings.temperature, settings.top_p, settings.top_k)

    def encode(self, prompt: Prompt) -> Tensor:
        """Token ids [P] of a prompt. Raises RelgradError when it leaves no room for a completion in the context."""
        return self.encoder.prompt(prompt)

    # ------------------------------------------------------------------ sampling

    def sample(self, prompts: Sequence[Prompt], group_size: int, randomness: Randomness) -> Rollouts:
        """See protocols.Policy. One uniform number per (row, decision), drawn up front."""
        encoded = [self.encode(p) for p in prompts]
        uniform_GKT = Draws.of(randomness, len(prompts)).rand(group_size, self.settings.max_completion_length)
        self.modes.draw()
        with torch.inference_mode():
            generated = self.engine.generate(
                [p.to(self.device) for p in encoded],
                group_size,
                self.truncation,
                torch.tensor(self.eos_ids, device=self.device),
                uniform_GKT.flatten(0, 1).to(self.device),
            )
        return self._rollouts(tuple(prompts), encoded, group_size, generated.ordinary())

    def served_law(self) -> ServedLaw:
        """See protocols.Served."""
        require_servable(self.model, self.settings)
        return ServedLaw(self.settings.temperature, self.settings.max_completion_length, tuple(self.eos_ids))

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """See protocols.Served."""
        ids: list[int] = self.encode(prompt).tolist()
        return ids

    def text_ids(self, text: str) -> list[int]:
        """See protocols.Served."""
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def rollouts_of(self, prompts: Sequence[Prompt], written: Sequence[Sequence[Written]]) -> Rollouts:
        """See protocols.Served."""
        encoded, rows = [self.encode(p) for p in prompts], [row for group in written for row in group]
        rollouts = self._rollouts(tuple(prompts), encoded, len(written[0]), generated_elsewhere(rows))
        return replace(rollouts, foreign=True)

    def save_adapter(self, folder: Path) -> None:
        """See protocols.Served."""
        self.model.save_pretrained(folder, safe_serialization=True)

    def _rollouts(
        self, prompts: tuple[Prompt, ...], encoded: list[Tensor], group_size: int, generated: Generated
    ) -> Rollouts:
        length_B, ended = generated.length_B, generated.ended_B.tolist()
        width = int(length_B.max())
        token_BT = generated.token_BT[:, :width]
        mask_BT = torch.arange(width)[None] < length_B[:, None]
        trace = {
            "prompt_ids": torch.cat(encoded).to(torch.int32),
            "prompt_length_G": torch.tensor([len(p) for p in encoded]),
            "token_BT": token_BT.to(torch.int32),
            "length_B": length_B,
        }
        if generated.support is not None:
            trace["support_offset"], trace["support_index"] = generated.support
        texts = [row[: n - e] for row, n, e in zip(token_BT.tolist(), length_B.tolist(), ended, strict=True)]
        decoded = self.encoder.decode(texts)
        stops: tuple[Stop, ...] = tuple("eos" if e else "length" for e in ended)
        return Rollouts(
            prompts=prompts,
            group_B=torch.arange(len(prompts)).repeat_interleave(group_size),
            behaviour_logp_BT=generated.logp_BT[:, :width],
            mask_BT=mask_BT,
            size_BT=mask_BT.long(),
            outputs=tuple(Output(t, tuple(ids)) for t, ids in zip(decoded, texts, strict=True)),
            stop=stops,
            policy_version=self.version,
            trace=trace,
            # one token after the other rounds differently from whole rows; in 16 bits that is more than rounding noise
            foreign=arithmetic(self.causal_lm) in (torch.bfloat16, torch.float16),
        )

    # ------------------------------------------------------------------ scoring

    @property
    def rounding(self) -> float:
        """See protocols.Rounds: that of the model's activations. Transformers normalises in float32 in a float64 model too."""
        return max(ROUNDING[arithmetic(self.causal_lm)], ROUNDING[torch.float32])

    def plan(self, rollouts: Rollouts, rows: Tensor, budget: int) -> list[Tensor]:
        """Chunks of whole rows that take at most `budget` tokens each, padding included; see engine.Engine."""
        return self.engine.plan(rollouts, rows, budget)

    def score(
        self, rollouts: Rollouts, cells_N2: Tensor, *, entropy: bool = False, reference_kl: bool = False
    ) -> CellScores:
        """See protocols.Policy. Dropout is off."""
        self.modes.score(dropout=False)
        reference = Reference(self.reference(), self.start_law) if reference_kl else None
        return self.engine.score(rollouts, cells_N2, self.truncation, entropy=entropy, reference=reference)

    # ------------------------------------------------------------------ supervised

    def supervised_loss(self, examples: Sequence[Example], randomness: Randomness) -> SupervisedLoss:
        """Summed cross-entropy (nats, at temperature 1) of the targets' tokens and of what ends each.

        Take the gradient before the next call: where there is dropout, the layers stay in training mode until then.
        """
        draws = Draws.of(randomness, len(examples))
        rollouts = _unsampled(examples, [self.encoder.example(e) for e in examples])
        self.modes.score(dropout=True)
        with seeded(draws):
            scores = self.engine.score(rollouts, rollouts.cells(), Truncation())
        total = -scores.logp_N.sum()
        return SupervisedLoss(total, len(scores.logp_N), float(total.detach()))

    @torch.no_grad()
    def target_nll(self, examples: Sequence[Example]) -> tuple[float, int]:
        """See protocols.KnowsTargets. The targets are those of `supervised_loss`."""
        rollouts = _unsampled(examples, [self.encoder.example(e) for e in examples])
        self.modes.score(dropout=False)
        scores = self.engine.score(rollouts, rollouts.cells(), Truncation())
        return -float(scores.logp_N.double().sum()), len(scores.logp_N)

    # ------------------------------------------------------------------ weights

    def parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Trainable parameters by name."""
        return self.weights.parameters()

    def freeze_reference(self) -> None:
        """Take the trainable weights of this moment as the reference (for a fresh LoRA adapter: the bare model)."""
        self.weights.freeze_reference()

    @property
    def temperature(self) -> float:
        """See protocols.Tempered."""
        return self.settings.temperature

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Score with the frozen start; the trainable weights come back whatever happens inside."""
        with self.start_at(self.temperature):
            yield

    @contextmanager
    def start_at(self, temperature: float) -> Iterator[None]:
        """See protocols.Tempered."""
        before, self.truncation = self.truncation, replace(self.truncation, temperature=temperature)
        try:
            with self.weights.reference():
                yield
        finally:
            self.truncation = before

    def save(self, folder: Path) -> None:
        """A PEFT adapter folder or a full model folder, with the tokenizer; transformers and peft load it as it is.

        An adapter's folder also says what it is an adapter of (networks/causal/saved.py).
        """
        self.model.save_pretrained(folder, safe_serialization=True)
        if is_adapted(self.model):
            save_base(Path(folder), self.base)
            (Path(folder) / "README.md").unlink(missing_ok=True)  # an empty form that names paths of this machine
        self.tokenizer.save_pretrained(folder)

    def merge(self, folder: Path) -> None:
        """See protocols.MergesAdapter. Takes the memory of a second model while it works."""
        if not is_adapted(self.model):
            raise RelgradError("the model has no adapter to merge: its checkpoint holds ordinary weights already")
        self._merged().save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)

    def _merged(self) -> Any:
        """A second model with the adapter folded into its weights. Raises RelgradError for weights of too few bits."""
        if self.settings.quantize is not None:
            raise RelgradError(
                f"policy.quantize={self.settings.quantize}: weights of so few bits cannot take an adapter in; open the run with "
                "policy.quantize=null policy.dtype=bfloat16"
            )
        return copy.deepcopy(self.model).merge_and_unload()

    def require_gguf(self) -> None:
        """See protocols.WritesGguf."""
        gguf_file.require_writable(bare(self.model), self.tokenizer)

    def write_gguf(self, file: Path, name: str) -> str:
        """See protocols.WritesGguf. Takes the memory of a second model while it works."""
        model = self._merged() if is_adapted(self.model) else self.model
        gguf_file.write(model, self.tokenizer, file, name)
        count = gguf_file.require_same(file, model, self.tokenizer)
        return f"{count} tensors and the tokenizer read back as they are"

    def load(self, folder: Path) -> None:
        """Read what `save` wrote into this policy's weights. Raises RelgradError for another model's folder."""
        load(self.model, Path(folder))


def _unsampled(examples: Sequence[Example], encoded: Sequence[tuple[Tensor, Tensor]]) -> Rollouts:
    """Rollouts of given texts, one row per example: what nobody sampled has no behaviour log-probs."""
    rows = len(examples)
    length_B = torch.tensor([len(target) for _, target in encoded])
    token_BT = pad_sequence([target for _, target in encoded], batch_first=True)
    mask_BT = torch.arange(token_BT.shape[1])[None] < length_B[:, None]
    trace = {
        "prompt_ids": torch.cat([prompt for prompt, _ in encoded]),
        "prompt_length_G": torch.tensor([len(prompt) for prompt, _ in encoded]),
        "token_BT": token_BT,
        "length_B": length_B,
    }
    stop: list[Stop] = ["eos"]
    return Rollouts(
        tuple(e.prompt for e in examples), torch.arange(rows), torch.zeros(mask_BT.shape), mask_BT, mask_BT.long(),
        (Output(""),) * rows, tuple(stop * rows), 0, trace,
    )  # fmt: skip
