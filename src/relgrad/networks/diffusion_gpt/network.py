"""The diffusion GPT: a pre-LN transformer over masked text, as language model, token classifier or sequence scorer.

Parameter names and shapes are those of the nano_gpt family (`transformer.h.0.attn.c_attn.weight` ...), so that its
checkpoints load by name (original_files.py). Attention is PyTorch's SDPA, which looks at valid positions alone. Rotary
positions rotate the two halves of each head (Su et al. 2021, arXiv:2104.09864, NeoX layout, base 10000).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from relgrad.core.errors import RelgradError
from relgrad.core.settings import Strict
from relgrad.laws.precision import at_least_float32
from relgrad.networks.weights.device import mixed
from relgrad.networks.weights.folder import SavedNetwork

ModelMode = Literal["language_model", "token_classifier", "sequence_scorer"]


class GPTConfig(Strict):
    """Sizes and kind of one network.

    mode   language_model: logits over the vocabulary (tied to the embedding); token_classifier: `num_token_classes` logits per
           position; sequence_scorer: one logit, read at the summary id `cls_token_id` in position 0
    marks  an extra embedding tells marked positions (those that were refilled) from the others
    critic a second head: one logit per position, that the token there is wrong
    attends_padding
           it was trained with the padding of its samples looked at like any other id, as the original does; whoever runs it then
           counts the padding of a sample to its text (see `valid_BL` of `GPT.hidden`)
    """

    vocab_size: int = Field(ge=4)
    block_size: int = Field(128, ge=1)
    n_layer: int = Field(4, ge=1)
    n_head: int = Field(4, ge=1)
    n_embd: int = Field(144, ge=2)
    dropout: float = Field(0.0, ge=0, lt=1)
    bias: bool = False
    attention_type: Literal["bidirectional", "causal"] = "bidirectional"
    position_encoding: Literal["rotary", "absolute"] = "rotary"
    mode: ModelMode = "language_model"
    num_token_classes: int = Field(1, ge=1)
    cls_token_id: int | None = None
    marks: bool = False
    critic: bool = False
    attends_padding: bool = False

    @model_validator(mode="after")
    def _legal(self) -> GPTConfig:
        if self.n_embd % self.n_head or (self.position_encoding == "rotary" and self.n_embd // self.n_head % 2):
            raise ValueError(
                f"n_embd={self.n_embd} over n_head={self.n_head}: every head needs the same, even number of dimensions"
            )
        if self.mode == "sequence_scorer" and self.cls_token_id is None:
            raise ValueError("a sequence_scorer reads its score at a summary id: set cls_token_id")
        if self.mode == "sequence_scorer" and self.attention_type == "causal":
            raise ValueError("a sequence_scorer reads position 0, which sees nothing under causal attention")
        return self


class Attention(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.n_head, config.dropout
        self.is_causal = config.attention_type == "causal"
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x_BLH: Tensor, rotation: tuple[Tensor, Tensor] | None, attend: Tensor | None) -> Tensor:
        batch, length, width = x_BLH.shape
        qkv = self.c_attn(x_BLH).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k = qkv[:2] if rotation is None else rotate(qkv[:2], *rotation)
        out = functional.scaled_dot_product_attention(
            q, k, qkv[2], attn_mask=attend, dropout_p=self.dropout if self.training else 0.0,
            is_causal=self.is_causal and attend is None,
        )  # fmt: skip
        return self.resid_dropout(self.c_proj(out.transpose(1, 2).reshape(batch, length, width)))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the two halves of the last axis against each other by the angles of each position."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class MLP(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(functional.gelu(self.c_fc(x))))


class Block(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None, attend: Tensor | None) -> Tensor:
        x = x + self.attn(self.ln_1(x), rotation, attend)
        return x + self.mlp(self.ln_2(x))


class ScaledSigmoidHead(nn.Module):
    """A * w.h + B: the logit of the score (the original's parameters; its unused `temperature` is kept for its files)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.base_predictor = nn.Linear(width, 1, bias=False)
        self.A = nn.Parameter(torch.ones(()))
        self.B = nn.Parameter(torch.zeros(()))
        self.temperature = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, hidden_BH: Tensor) -> Tensor:
        return self.A * self.base_predictor(hidden_BH)[:, 0] + self.B


class Trunk(nn.Module):
    """Embeddings, blocks and the last norm."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        if config.position_encoding == "absolute":
            self.wpe = nn.Embedding(config.block_size, config.n_embd)
        if config.marks:
            self.marks = nn.Embedding(2, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)


class GPT(SavedNetwork):
    """See the module. `hidden` is the trunk; `logits`, `classes`, `score` and `critic` are the heads on its output.

    `arithmetic` is what the trunk computes in, around weights that stay as they are; heads compute in the weights' own precision.
    """

    config_type, called = GPTConfig, "a diffusion GPT"
    config: GPTConfig

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.arithmetic = torch.float32
        self.transformer = Trunk(config)
        if config.mode == "token_classifier":
            self.lm_head = nn.Linear(config.n_embd, config.num_token_classes, bias=config.bias)
        elif config.mode == "sequence_scorer":
            self.sequence_head = ScaledSigmoidHead(config.n_embd)
            self.cls_embedding = nn.Parameter(torch.empty(config.n_embd))
        if config.critic:
            self.critic_head = nn.Linear(config.n_embd, 1, bias=True)
        self._initialise()
        self._rotations: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                scale = 1 / math.sqrt(2 * self.config.n_layer) if name.endswith("c_proj.weight") else 1.0
                nn.init.normal_(parameter, std=0.02 * scale)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name == "cls_embedding":
                nn.init.normal_(parameter, std=0.02)

    @property
    def device(self) -> torch.device:
        return self.transformer.wte.weight.device

    def _rotation(self, length: int) -> tuple[Tensor, Tensor] | None:
        if self.config.position_encoding != "rotary":
            return None
        key = (length, self.device)
        if key not in self._rotations:
            half = self.config.n_embd // self.config.n_head // 2
            rate = 10000.0 ** (-torch.arange(half, device=self.device) / half)
            angle = torch.arange(length, device=self.device)[:, None] * rate
            self._rotations[key] = (angle.cos(), angle.sin())
        cos, sin = self._rotations[key]
        dtype = self.transformer.wte.weight.dtype
        return cos.to(dtype), sin.to(dtype)

    def hidden(self, ids_BL: Tensor, valid_BL: Tensor | None = None, mark_BL: Tensor | None = None) -> Tensor:
        """[B, L, H]: normalised output of the trunk. `valid_BL` is True where a position may be looked at: at text, and, of a
        network that attends to padding, at the padding of the sample's own window. `mark_BL` is True at marked positions.

        Raises RelgradError when the rows are longer than the block size.
        """
        length = ids_BL.shape[1]
        if length > self.config.block_size:
            raise RelgradError(f"{length} ids, but the model's block_size is {self.config.block_size}")
        with mixed(self.device, self.arithmetic):
            return self._hidden(ids_BL, valid_BL, mark_BL).to(self.transformer.wte.weight.dtype)

    def _hidden(self, ids_BL: Tensor, valid_BL: Tensor | None, mark_BL: Tensor | None) -> Tensor:
        length = ids_BL.shape[1]
        x = self.transformer.wte(ids_BL)
        if self.config.mode == "sequence_scorer":
            x = torch.where(ids_BL.eq(self.config.cls_token_id or 0)[..., None], self.cls_embedding.to(x.dtype), x)
        if self.config.position_encoding == "absolute":
            x = x + self.transformer.wpe.weight[:length]
        if mark_BL is not None:
            x = x + self.transformer.marks(mark_BL.long())
        x = self.transformer.drop(x)
        attend, rotation = self._attend(valid_BL, length), self._rotation(length)
        for block in self.transformer.h:
            x = block(x, rotation, attend)
        return self.transformer.ln_f(x)

    def _attend(self, valid_BL: Tensor | None, length: int) -> Tensor | None:
        """bool [B, 1, 1 or L, L], True where a position may be looked at; None where nothing is padded."""
        if valid_BL is None or bool(torch.all(valid_BL)):
            return None
        attend: Tensor = valid_BL[:, None, None, :]
        if self.config.attention_type == "causal":
            attend = attend & torch.ones(length, length, dtype=torch.bool, device=attend.device).tril()
        return attend

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """[..., V], float32: language-model logits (the head is the embedding) of the positions given."""
        return at_least_float32(functional.linear(hidden_NH, self.transformer.wte.weight))

    def classes(self, hidden_NH: Tensor) -> Tensor:
        """[..., C], float32: a token classifier's logits of the positions given."""
        return at_least_float32(self.lm_head(hidden_NH))

    def score(self, hidden_BLH: Tensor) -> Tensor:
        """[B], float32: a sequence scorer's logit, read at position 0."""
        return at_least_float32(self.sequence_head(hidden_BLH[:, 0]))

    def critic(self, hidden_NH: Tensor) -> Tensor:
        """[...], float32: logit that the token at a position is wrong."""
        return at_least_float32(self.critic_head(hidden_NH)[..., 0])
