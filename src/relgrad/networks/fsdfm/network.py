"""FS-DFM's network: a bidirectional transformer over noised text, told the time (and a student also the step size).

    c = SiLU(E_t(t))                                      or, step-conditioned, per block m:
    c = SiLU(G_m SiLU(F [E_t(t), E_d(d)]))
    (s1, a1, g1, s2, a2, g2) = A_m c                      adaptive layer norm (Peebles & Xie 2023, arXiv:2212.09748)
    x = x + g1 Attention(LN(x)(1 + a1) + s1)
    x = x + g2 MLP(LN(x)(1 + a2) + s2)
    hidden = LN(x)(1 + a) + s,   logits = W hidden + b

Names, shapes and arithmetic are those of Apple's checkpoints (apple/ml-fs-dfm, arXiv:2509.20624), which load by name
(published_files.py): layer norm with a weight only, eps 1e-5 and rotary halves, both in float32; the residual stream is
float32 whatever the weights are; GELU by tanh; an untied head with a bias. A_m and the head start at zero. Attention sees
everything but padding. A float64 network computes in float64 throughout.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from relgrad.core.errors import RelgradError
from relgrad.core.settings import Strict
from relgrad.laws.precision import at_least_float32
from relgrad.networks.weights.device import mixed
from relgrad.networks.weights.folder import SavedNetwork

FREQUENCIES, LONGEST_PERIOD = 256, 10_000.0
"""Sinusoids of a time, and the longest period among them."""
GPT2_VOCABULARY = 50_257

SIZES: dict[str, dict[str, Any]] = {
    "1.3b": {"hidden": 2048, "blocks": 21, "heads": 32, "cond_dim": 256, "length": 1024, "dropout": 0.1},
    "base": {"hidden": 768, "blocks": 12, "heads": 12, "cond_dim": 128, "length": 1024, "dropout": 0.1},
    "small": {"hidden": 192, "blocks": 6, "heads": 6, "cond_dim": 64, "length": 256},
    "tiny": {"hidden": 32, "blocks": 2, "heads": 2, "cond_dim": 16, "length": 64},
}
"""By name: Apple's published size, its default configuration, and two for a CPU."""


class DiTConfig(Strict):
    """Sizes of one network.

    vocab_size        rows of the embedding and of the head: with a mask source, one more than there are tokens
    length            the most positions a row may have
    step_conditioned  a few-step student, which is also told the size of the step
    """

    vocab_size: int = Field(GPT2_VOCABULARY, ge=2)
    length: int = Field(1024, ge=1)
    hidden: int = Field(32, ge=2)
    blocks: int = Field(2, ge=1)
    heads: int = Field(2, ge=1)
    cond_dim: int = Field(16, ge=1)
    mlp_ratio: int = Field(4, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    step_conditioned: bool = False

    @model_validator(mode="after")
    def _legal(self) -> DiTConfig:
        if self.hidden % self.heads or self.hidden // self.heads % 2:
            raise ValueError(
                f"hidden={self.hidden} over heads={self.heads}: every head needs the same, even number of dimensions"
            )
        return self

    @staticmethod
    def preset(size: str, **changes: Any) -> DiTConfig:
        """One of SIZES, with `changes`. Raises RelgradError for an unknown name."""
        if size not in SIZES:
            raise RelgradError(f"size {size!r}: allowed are {', '.join(SIZES)}")
        return DiTConfig(**{**SIZES[size], **changes})


class LayerNorm(nn.Module):
    """Without a bias, in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return functional.layer_norm(at_least_float32(x), x.shape[-1:]) * self.weight


class TimeEmbedder(nn.Module):
    """A number in [0, 1] per row as a vector: cosines, then sines, through two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time_B: Tensor) -> Tensor:
        half = FREQUENCIES // 2
        rate = torch.exp(-math.log(LONGEST_PERIOD) * torch.arange(half, device=time_B.device) / half)
        angle = time_B.float()[:, None] * rate
        dtype: torch.dtype = self.mlp[0].weight.dtype  # type: ignore[assignment]
        return self.mlp(torch.cat([angle.cos(), angle.sin()], -1).to(dtype))


class Block(nn.Module):
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width, self.heads, self.dropout = config.hidden, config.heads, config.dropout
        self.norm1 = LayerNorm(width)
        self.qw = nn.Linear(width, width, bias=False)
        self.kw = nn.Linear(width, width, bias=False)
        self.vw = nn.Linear(width, width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.norm2 = LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, config.mlp_ratio * width),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.mlp_ratio * width, width),
        )
        if config.step_conditioned:
            self.condition_fuser = nn.Linear(2 * config.cond_dim, config.cond_dim)
        self.adaLN_modulation = _zero(nn.Linear(config.cond_dim, 6 * width))

    def forward(self, x: Tensor, cond_BC: Tensor, rotation: tuple[Tensor, Tensor], attend: Tensor | None) -> Tensor:
        """x is [B, L, H] float32, and so is the result."""
        shift1, scale1, gate1, shift2, scale2, gate2 = _modulation(self, cond_BC).chunk(6, -1)
        x = x + gate1 * self._drop(self._attention(self.norm1(x) * (1 + scale1) + shift1, rotation, attend))
        inner = (self.norm2(x) * (1 + scale2) + shift2).to(self.mlp[0].weight.dtype)
        return x + gate2 * self._drop(self.mlp(inner))

    def _attention(self, x: Tensor, rotation: tuple[Tensor, Tensor], attend: Tensor | None) -> Tensor:
        batch, length, width = x.shape
        x = x.to(self.qw.weight.dtype)
        q, k, v = (
            linear(x).view(batch, length, self.heads, -1).transpose(1, 2) for linear in (self.qw, self.kw, self.vw)
        )
        q, k = rotate(q, *rotation), rotate(k, *rotation)
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=attend)
        return self.attn_out(out.transpose(1, 2).reshape(batch, length, width))

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training)


class OutputLayer(nn.Module):
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.norm_final = LayerNorm(config.hidden)
        self.linear = _zero(nn.Linear(config.hidden, config.vocab_size))
        if config.step_conditioned:
            self.condition_fuser = nn.Linear(2 * config.cond_dim, config.cond_dim)
        self.adaLN_modulation = _zero(nn.Linear(config.cond_dim, 2 * config.hidden))

    def modulated(self, x: Tensor, cond_BC: Tensor) -> Tensor:
        """What the head reads."""
        shift, scale = _modulation(self, cond_BC).chunk(2, -1)
        return self.norm_final(x) * (1 + scale) + shift


def _zero(linear: nn.Linear) -> nn.Linear:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _modulation(part: Block | OutputLayer, cond_BC: Tensor) -> Tensor:
    """[B, 1, k * H]: shifts, scales and gates of one block or of the output layer."""
    if hasattr(part, "condition_fuser"):
        cond_BC = functional.silu(part.condition_fuser(cond_BC))
    return part.adaLN_modulation(cond_BC)[:, None]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the two halves of the last axis against each other by the angles of each position, in float32."""
    first, second = at_least_float32(x).chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


def inverse_frequencies(head_width: int) -> Tensor:
    """float32 [head_width / 2]: the angle of a rotary pair per position (the files' buffer `rotary_emb.inv_freq`)."""
    return 1.0 / (10_000.0 ** (torch.arange(0, head_width, 2).float() / head_width))


class DiT(SavedNetwork):
    """See the module. `hidden` is all but the head, `logits` the head on the positions that are asked for.

    `checkpointing` recomputes every block in the backward pass instead of keeping what is inside. `arithmetic` is what the blocks
    compute in, around weights that stay as they are; the head computes in the weights' own precision.
    """

    config_type, called = DiTConfig, "an FS-DFM network"
    config: DiTConfig

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        self.checkpointing, self.arithmetic = False, torch.float32
        self.vocab_embed = nn.Embedding(config.vocab_size, config.hidden)
        self.time_embedding = TimeEmbedder(config.cond_dim)
        if config.step_conditioned:
            self.dt_embedding = TimeEmbedder(config.cond_dim)
            self.time_condition_fuser = nn.Linear(2 * config.cond_dim, 2 * config.cond_dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.output_layer = OutputLayer(config)
        self._rotations: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    @property
    def device(self) -> torch.device:
        return self.vocab_embed.weight.device

    def hidden(
        self, ids_BL: Tensor, time_B: Tensor, step_B: Tensor | None = None, valid_BL: Tensor | None = None
    ) -> Tensor:
        """float32 [B, L, H], everything up to and including the final adaptive norm.

        time_B    the time of each row, in [0, 1]
        step_B    the size of the step that is to be taken, of a step-conditioned network only
        valid_BL  False at padding
        Raises RelgradError for rows longer than `length`, and for a step too many or missing.
        """
        length = ids_BL.shape[1]
        if length > self.config.length:
            raise RelgradError(f"{length} ids, but the network's length is {self.config.length}")
        if (step_B is not None) != self.config.step_conditioned:
            raise RelgradError(
                "this network is not step-conditioned: leave the step size out (a few-step student takes one)"
                if step_B is not None
                else "this network is step-conditioned (a few-step student): give it the size of the step"
            )
        with mixed(self.device, self.arithmetic):
            return self._hidden(ids_BL, time_B, step_B, valid_BL)

    def _hidden(self, ids_BL: Tensor, time_B: Tensor, step_B: Tensor | None, valid_BL: Tensor | None) -> Tensor:
        cond_BC = self._condition(time_B, step_B)
        attend = None if valid_BL is None or bool(torch.all(valid_BL)) else valid_BL[:, None, None, :]
        rotation = self._rotation(ids_BL.shape[1])
        x = at_least_float32(self.vocab_embed(ids_BL))
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, cond_BC, rotation, attend, use_reentrant=False)
            else:
                x = block(x, cond_BC, rotation, attend)
        return self.output_layer.modulated(x, cond_BC)

    def logits(self, hidden_MH: Tensor) -> Tensor:
        """[M, V]: logits of the positions given, in the precision of the head's weights, as float32 (or float64)."""
        head = self.output_layer.linear
        with torch.autocast(hidden_MH.device.type, enabled=False):
            return at_least_float32(head(hidden_MH.to(head.weight.dtype)))

    def _condition(self, time_B: Tensor, step_B: Tensor | None) -> Tensor:
        """[B, C], or [B, 2 C] for the blocks' fusers, without autocast: bfloat16 tells few times apart."""
        with torch.autocast(time_B.device.type, enabled=False):
            cond_BC = self.time_embedding(time_B)
            if step_B is not None:
                cond_BC = self.time_condition_fuser(torch.cat([cond_BC, self.dt_embedding(step_B)], -1))
            return functional.silu(cond_BC)

    def _rotation(self, length: int) -> tuple[Tensor, Tensor]:
        """cos and sin [L, head width / 2], float32."""
        key = (length, self.device)
        if key not in self._rotations:
            rate = inverse_frequencies(self.config.hidden // self.config.heads).to(self.device)
            angle = torch.arange(length, device=self.device).float()[:, None] * rate
            self._rotations[key] = (angle.cos(), angle.sin())
        return self._rotations[key]

    # ------------------------------------------------------------------ a student

    def student(self) -> DiT:
        r"""A step-conditioned network with these weights that answers, at every step size, exactly what this one does.

        SiLU(x) - SiLU(-x) = x, so F = [[I, 0], [-I, 0]] and G_m = [I, -I] hand E_t(t) through. Raises RelgradError for a
        network that is step-conditioned already.
        """
        if self.config.step_conditioned:
            raise RelgradError("this network is a step-conditioned student already")
        student = DiT(self.config.model_copy(update={"step_conditioned": True}))
        student = student.to(self.device, self.vocab_embed.weight.dtype).train(self.training)
        student.take({**student.state_dict(), **self.state_dict()}, "the teacher")
        width = self.config.cond_dim
        eye = torch.eye(width)
        with torch.no_grad():
            student.time_condition_fuser.weight.zero_()
            student.time_condition_fuser.weight[:, :width].copy_(torch.cat([eye, -eye]))
            student.time_condition_fuser.bias.zero_()
            for part in [*student.blocks, student.output_layer]:
                part.condition_fuser.weight.copy_(torch.cat([eye, -eye], 1))
                part.condition_fuser.bias.zero_()
        return student
