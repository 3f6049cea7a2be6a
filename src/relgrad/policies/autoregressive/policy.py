"""The autoregressive policy: any Hugging Face causal language model; one decision is one token.

    log pi(token_t | prompt, tokens before t) = log softmax(logits / temperature)[token_t]  over the recorded support

Sampling and scoring share `laws/categorical.py` and the same head. Generation prefills each prompt once (models/decode.py);
scoring packs all rows without padding and computes a group's prompt once (models/shared_prompt.py). Architectures that do
not run on the shared-prompt attention (a probe at loading time finds out) use transformers' own `generate()` and forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.settings import Strict
from relgrad.core.types import CellScores, Example, Output, Prompt, Rollouts, Stop
from relgrad.laws import tiled
from relgrad.laws.categorical import Truncation
from relgrad.networks.causal import decode, shared_prompt
from relgrad.networks.causal import load as causal
from relgrad.networks.weights.reference import FrozenStart
from relgrad.networks.weights.seeded_dropout import seeded
from relgrad.policies.autoregressive import transformers_engine as _transformers
from relgrad.policies.autoregressive.packed import Packed


class Lora(Strict):
    """LoRA through peft; `target_modules` as peft takes them ("all-linear" or a list of layer names)."""

    r: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: str | tuple[str, ...] = "all-linear"


class Settings(Strict):
    """What a recipe's `policy` section may say beside `kind: autoregressive`.

    model                   folder, hub name, .gguf file, or a bundled name (smollm2-135m-instruct)
    lora                    adapter settings; leave out for full-parameter training
    reference               keep the frozen start for a divergence term; the loop asks for it when beta > 0
    max_completion_length   tokens
    chat                    wrap a plain-text prompt as one user message in the model's chat template
    engine                  "auto": shared-prompt engine where the probe passes; "shared" insists on it; "transformers" avoids it
    """

    model: str
    tokenizer: str | None = None
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    quantize: Literal["4bit", "8bit"] | None = None
    trust_remote_code: bool = False
    lora: Lora | None = None
    adapter: str | None = None
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    max_completion_length: int = Field(256, ge=1)
    chat: bool = False
    system_prompt: str | None = None
    eos_token_ids: tuple[int, ...] = ()
    gradient_checkpointing: bool = False
    engine: Literal["auto", "shared", "transformers"] = "auto"
    device: str = "auto"


def build(settings: Settings, seed: int, start: Path | None = None, reference: bool = False) -> AutoregressivePolicy:
    """The policy of a recipe. `start` is the folder an earlier stage saved: an adapter to go on with, or a full model.

    `reference` keeps a copy of the trainable start weights, for divergence terms. Raises RelgradError.
    """
    model_name = settings.model
    adapter = Path(settings.adapter) if settings.adapter else None
    if start is not None:
        if (start / "adapter_model.safetensors").is_file():
            adapter, model_name = start, causal.base_of(start, settings.model)
        else:
            model_name = str(start.resolve())
    if settings.quantize and settings.lora is None:
        raise RelgradError(f"quantize={settings.quantize!r} trains adapters only: add a lora section")
    if settings.lora is None and settings.dtype in ("bfloat16", "float16"):
        raise RelgradError(
            f"dtype={settings.dtype!r} with full-parameter training: small updates would be rounded away. Use dtype: float32, or "
            "train a float32 adapter on these weights with a lora section"
        )
    if adapter is not None and settings.lora is None:
        raise RelgradError(
            f"{adapter} is an adapter, but policy.lora is not set: add the lora section it was trained with"
        )
    tokenizer = causal.load_tokenizer(
        settings.tokenizer or settings.model, trust_remote_code=settings.trust_remote_code
    )
    model = causal.load_model(
        model_name, dtype=settings.dtype, quantize=settings.quantize, trust_remote_code=settings.trust_remote_code
    )
    if settings.quantize is None:
        model.to(_device(settings.device))
    if settings.lora is not None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            lora = settings.lora
            model = causal.add_lora(
                model, r=lora.r, alpha=lora.alpha, dropout=lora.dropout, targets=lora.target_modules
            )
    policy = AutoregressivePolicy(model, tokenizer, settings)
    if adapter is not None:
        policy.load(adapter)
        policy.check_adapter_acts(adapter)
    if reference:
        policy.freeze_reference()
    return policy


def _device(name: str) -> torch.device:
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class AutoregressivePolicy:
    """See the module. Trace: prompt_ids (flat), prompt_length_G, token_BT, length_B and, truncated, the support."""

    law: Literal["exact", "surrogate"] = "exact"

    def __init__(self, model: Any, tokenizer: Any, settings: Settings) -> None:
        self.model, self.tokenizer, self.settings = model.eval(), tokenizer, settings
        self.version = 0
        self.max_decisions = settings.max_completion_length
        self.truncation = Truncation(settings.temperature, settings.top_k, settings.top_p)
        self.causal_lm = model.get_base_model() if hasattr(model, "peft_config") else model
        self.device = next(model.parameters()).device
        self.eos_ids = causal.eos_ids(self.causal_lm, tokenizer, settings.eos_token_ids)
        if not self.eos_ids:
            raise RelgradError(f"model {settings.model!r} names no end-of-sequence id: set policy.eos_token_ids")
        self.context = causal.context(self.causal_lm.config)
        self._start = FrozenStart()
        if settings.gradient_checkpointing:
            lm = self.causal_lm  # the method's name since transformers 5.20, and before
            enable = getattr(lm, "activation_checkpointing_enable", None) or lm.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        self._recomputed = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
        self._dropout = [m for m in model.modules() if isinstance(m, torch.nn.Dropout) and m.p > 0]
        self.engine, self.engine_note = _transformers.choose_engine(self.causal_lm, settings.engine)

    # ------------------------------------------------------------------ prompts

    def encode(self, prompt: Prompt) -> Tensor:
        """Token ids [P] of a prompt. Raises RelgradError when it leaves no room for a completion in the context."""
        content = prompt.content
        if isinstance(content, str) and self.settings.chat:
            content = [{"role": "user", "content": content}]
        if isinstance(content, str):
            ids = self.tokenizer(content, padding=False).input_ids
        else:
            if self.settings.system_prompt is not None:
                content = [{"role": "system", "content": self.settings.system_prompt}, *content]
            if not self.tokenizer.chat_template:
                raise RelgradError(
                    f"prompt {prompt.id} is a chat, but model {self.settings.model!r} has no chat template: give plain text"
                )
            text = self.tokenizer.apply_chat_template(list(content), tokenize=False, add_generation_prompt=True)
            ids = self.tokenizer(text, padding=False, add_special_tokens=False).input_ids
        if not ids:
            raise RelgradError(f"prompt {prompt.id} has no tokens: {prompt.text[:60]!r}")
        self._check_room(prompt, len(ids), self.settings.max_completion_length)
        return torch.tensor(ids, dtype=torch.int64)

    def _check_room(self, prompt: Prompt, length: int, completion: int) -> None:
        if self.context is not None and length + completion > self.context:
            raise RelgradError(
                f"prompt {prompt.id} has {length} tokens; with {completion} for the completion that is more than the "
                f"model's context of {self.context}. Shorten the prompt or lower policy.max_completion_length. "
                f"It begins {prompt.text[:60]!r}"
            )

    # ------------------------------------------------------------------ sampling

    def sample(self, prompts: Sequence[Prompt], group_size: int, generator: torch.Generator) -> Rollouts:
        """See protocols.Policy. One uniform number per (row, decision), drawn up front."""
        self._set_modes(dropout=False)
        limit = self.settings.max_completion_length
        encoded = [self.encode(p) for p in prompts]
        uniform_BT = torch.rand(len(prompts) * group_size, limit, generator=generator).to(self.device)
        eos = torch.tensor(self.eos_ids, device=self.device)
        on_device = [p.to(self.device) for p in encoded]
        with torch.inference_mode():
            if self.engine == "shared":
                out = decode.generate(
                    self.causal_lm.get_decoder(), self._head(), on_device, group_size,
                    law=self.truncation, limit=limit, eos_ids=eos, uniform_BT=uniform_BT,
                )  # fmt: skip
            else:
                out = _transformers.generate(
                    self.causal_lm, on_device, group_size,
                    law=self.truncation, limit=limit, eos_ids=eos, uniform_BT=uniform_BT,
                )  # fmt: skip
        return self._rollouts(tuple(prompts), encoded, group_size, out.ordinary())

    def _rollouts(
        self, prompts: tuple[Prompt, ...], encoded: list[Tensor], group_size: int, out: decode.Generated
    ) -> Rollouts:
        length_B = out.length_B.cpu()
        width = int(length_B.max())
        token_BT, ended = out.token_BT[:, :width].cpu(), out.ended_B.tolist()
        mask_BT = torch.arange(width)[None] < length_B[:, None]
        trace = {
            "prompt_ids": torch.cat(encoded).to(torch.int32),
            "prompt_length_G": torch.tensor([len(p) for p in encoded]),
            "token_BT": token_BT.to(torch.int32),
            "length_B": length_B,
        }
        if out.support is not None:
            trace["support_offset"], trace["support_index"] = out.support.offset_N1.cpu(), out.support.entry_M.cpu()
        texts = [row[: n - e] for row, n, e in zip(token_BT.tolist(), length_B.tolist(), ended, strict=True)]
        decoded = self.tokenizer.batch_decode(texts, skip_special_tokens=True)
        stops: tuple[Stop, ...] = tuple("eos" if e else "length" for e in ended)
        return Rollouts(
            prompts=prompts,
            group_B=torch.arange(len(prompts)).repeat_interleave(group_size),
            behaviour_logp_BT=out.logp_BT[:, :width].cpu(),
            mask_BT=mask_BT,
            size_BT=mask_BT.long(),
            outputs=tuple(Output(t, tuple(ids)) for t, ids in zip(decoded, texts, strict=True)),
            stop=stops,
            policy_version=self.version,
            trace=trace,
            # generate() in reduced precision rounds differently from scoring: its log-probs are another engine's
            foreign=self.engine == "transformers" and self.causal_lm.dtype in (torch.bfloat16, torch.float16),
        )

    # ------------------------------------------------------------------ scoring

    def plan(self, rollouts: Rollouts, rows: Tensor, budget: int) -> list[Tensor]:
        """Chunks of neighbouring rows whose tokens stay near `budget`; a prompt counts once where the engine shares it."""
        group_B = rollouts.group_B
        prompt_cost_B = rollouts.trace["prompt_length_G"][group_B].tolist()
        row_cost_B = rollouts.trace["length_B"].tolist()
        chunks: list[list[int]] = []
        used, group, shares = budget + 1, -1, self.engine == "shared"
        for row in sorted(rows.tolist(), key=lambda b: (int(group_B[b]), b)):
            prompt_is_paid = shares and int(group_B[row]) == group
            cost = row_cost_B[row] + (0 if prompt_is_paid else prompt_cost_B[row])
            if used + cost > budget or not chunks:
                chunks.append([])
                used, cost = 0, row_cost_B[row] + prompt_cost_B[row]
            chunks[-1].append(row)
            used, group = used + cost, int(group_B[row])
        cells = [rollouts.cells(torch.tensor(chunk)) for chunk in chunks]
        return [c for c in cells if len(c)]

    def score(
        self, rollouts: Rollouts, cells_N2: Tensor, *, entropy: bool = False, reference_kl: bool = False
    ) -> CellScores:
        """See protocols.Policy. Dropout is off; entropy comes at no extra cost."""
        self._set_modes(dropout=False)
        if self.engine == "transformers":
            return _transformers.score(self, rollouts, cells_N2, entropy=entropy, reference_kl=reference_kl)
        packed = Packed.of(rollouts, cells_N2, self.device)
        hidden_NH = self._hidden(packed)
        logp_N, entropy_N = tiled.log_probs(hidden_NH, self._head(), packed.target_N, support=packed.support)
        kl_N = None
        if reference_kl:
            with torch.no_grad(), self.reference():
                reference_NH, reference_head = self._hidden(packed), self._head()
                # detached, these are the start's own tensors; the parameters themselves get their weights back
                bias = reference_head.bias_V
                reference_head = reference_head._replace(
                    weight_VH=reference_head.weight_VH.detach(), bias_V=None if bias is None else bias.detach()
                )
            kl_N = tiled.reference_kl(hidden_NH, self._head(), reference_NH, reference_head, packed.support)
        return CellScores(logp_N, entropy_N if entropy else None, kl_N)

    def _hidden(self, packed: Packed) -> Tensor:
        flat = shared_prompt.hidden_states(
            self.causal_lm.get_decoder(), packed.token_N, packed.layout.position_N, packed.layout
        )
        return flat.index_select(0, packed.hidden_N)

    def _head(self) -> tiled.Head:
        layer = self.causal_lm.get_output_embeddings()
        return tiled.Head(layer.weight, getattr(layer, "bias", None), self.truncation.temperature)

    # ------------------------------------------------------------------ supervised

    def supervised_loss(self, examples: Sequence[Example], generator: torch.Generator) -> tuple[Tensor, int]:
        """Summed cross-entropy (nats, at temperature 1) of the targets' tokens and of the end of sequence after each.

        Dropout, where the model has any, is drawn from `generator`. Take the gradient before the next call.
        """
        prompts = [self.encode(e.prompt) for e in examples]
        targets = []
        for example, prompt in zip(examples, prompts, strict=True):
            ids = self.tokenizer(example.target, padding=False, add_special_tokens=False).input_ids
            self._check_room(example.prompt, len(prompt), len(ids) + 1)
            targets.append(torch.tensor([*ids, self._end_id()]))
        lengths = [len(t) for t in targets]
        token_BT = torch.nn.utils.rnn.pad_sequence(targets, batch_first=True)
        mask_BT = torch.arange(token_BT.shape[1])[None] < torch.tensor(lengths)[:, None]
        trace = {
            "prompt_ids": torch.cat(prompts),
            "prompt_length_G": torch.tensor([len(p) for p in prompts]),
            "token_BT": token_BT,
            "length_B": torch.tensor(lengths),
        }
        rollouts = _unsampled(tuple(e.prompt for e in examples), mask_BT, trace)
        self._set_modes(dropout=True)
        with seeded(generator):
            if self.engine == "transformers":
                scores = _transformers.score(self, rollouts, rollouts.cells(), temperature=1.0)
                return -scores.logp_N.sum(), sum(lengths)
            packed = Packed.of(rollouts, rollouts.cells(), self.device)
            head = self._head()._replace(temperature=1.0)
            logp_N, _ = tiled.log_probs(self._hidden(packed), head, packed.target_N)
        return -logp_N.sum(), sum(lengths)

    def _end_id(self) -> int:
        """The end-of-sequence id a chat turn or text is closed with: the tokenizer's own, else the model's first."""
        return int(self.tokenizer.eos_token_id) if self.tokenizer.eos_token_id is not None else self.eos_ids[0]

    def _set_modes(self, *, dropout: bool) -> None:
        """Dropout on or off; layers that recompute their activations do so only where gradients are taken.

        The modes stay until the next call, because a backward pass with gradient checkpointing runs the forward again.
        Everything else is always in evaluation mode.
        """
        for layer in self._dropout:
            layer.train(dropout)
        for layer in self._recomputed:
            layer.training = torch.is_grad_enabled()

    # ------------------------------------------------------------------ weights

    def parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Trainable parameters by name."""
        return ((n, p) for n, p in self.model.named_parameters() if p.requires_grad)

    def freeze_reference(self) -> None:
        """Take the trainable weights of this moment as the reference (for a fresh LoRA adapter: the bare model)."""
        self._start.take(self.parameters())

    def reference(self) -> AbstractContextManager[None]:
        """Score with the frozen start; the trainable weights come back whatever happens inside."""
        return self._start.in_place(self.parameters())

    def save(self, folder: Path) -> None:
        """A PEFT adapter folder or a full model folder, with the tokenizer; transformers and peft load it as it is."""
        self.model.save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote into this policy's weights. Raises RelgradError for another model's folder."""
        folder = Path(folder)
        if hasattr(self.model, "peft_config"):
            from peft import get_peft_model_state_dict, set_peft_model_state_dict

            expected = {n: t.shape for n, t in get_peft_model_state_dict(self.model).items()}
            set_peft_model_state_dict(self.model, causal.check_adapter(folder, expected))
            return
        causal.load_weights(self.model, folder)

    def check_adapter_acts(self, folder: Path) -> None:
        """Make sure that the adapter just loaded changes the model's output. Raises RelgradError when it does not."""
        ids = torch.arange(1, 9, device=self.device)[None] % self.causal_lm.config.vocab_size
        with torch.no_grad():
            acting = self.model(input_ids=ids).logits
            with self.model.disable_adapter():
                bare = self.model(input_ids=ids).logits
        if torch.equal(acting, bare):
            raise RelgradError(
                f"{folder}: the adapter was loaded but does not change the output (untrained: every B is 0?)"
            )


def _unsampled(prompts: tuple[Prompt, ...], mask_BT: Tensor, trace: dict[str, Tensor]) -> Rollouts:
    """Rollouts of given texts, one row per prompt: what nobody sampled has no behaviour log-probs."""
    rows = len(prompts)
    stop: list[Stop] = ["eos"]
    return Rollouts(
        prompts, torch.arange(rows), torch.zeros(mask_BT.shape), mask_BT, mask_BT.long(),
        tuple(Output("") for _ in range(rows)), tuple(stop * rows), 0, trace,
    )  # fmt: skip
