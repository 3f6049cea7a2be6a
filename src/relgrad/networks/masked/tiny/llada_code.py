"""A LLaDA in small, with the names and the interface of the published one. It stands by itself: folders hold a copy."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class LLaDAConfig(PretrainedConfig):
    model_type = "llada"


class RMSNorm(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(config.d_model)), config.rms_norm_eps

    def forward(self, x):
        return self.weight * (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


def rotated(x, theta):
    """Rotary positions 0, 1, ... of [B, heads, L, D]."""
    half = x.shape[-1] // 2
    rate = theta ** (-torch.arange(half, device=x.device).float() / half)
    angle = torch.arange(x.shape[2], device=x.device).float()[:, None] * rate
    cos, sin = (f(angle).to(x.dtype).repeat(1, 2) for f in (torch.cos, torch.sin))
    first, second = x[..., :half], x[..., half:]
    return x * cos + torch.cat([-second, first], -1) * sin


class LLaDALlamaBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, width = config, config.d_model
        own = config.n_kv_heads * width // config.n_heads
        self.attn_norm, self.ff_norm = RMSNorm(config), RMSNorm(config)
        self.q_proj, self.attn_out = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.k_proj, self.v_proj = nn.Linear(width, own, bias=False), nn.Linear(width, own, bias=False)
        self.ff_proj = nn.Linear(width, config.mlp_hidden_size, bias=False)
        self.up_proj = nn.Linear(width, config.mlp_hidden_size, bias=False)
        self.ff_out = nn.Linear(config.mlp_hidden_size, width, bias=False)

    def forward(self, x):
        normed, heads = self.attn_norm(x), self.config.n_heads
        size = self.config.d_model // heads
        q, k, v = (p(normed).unflatten(-1, (-1, size)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotated(q, self.config.rope_theta), rotated(k, self.config.rope_theta)
        k, v = (t.repeat_interleave(heads // self.config.n_kv_heads, 1) for t in (k, v))
        weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(size), -1)
        x = x + self.attn_out((weights @ v).transpose(1, 2).flatten(2))
        normed = self.ff_norm(x)
        return x + self.ff_out(F.silu(self.ff_proj(normed)) * self.up_proj(normed))


class LLaDAModel(nn.Module):
    transformer: Any

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.embedding_size, config.d_model),
                "blocks": nn.ModuleList([LLaDALlamaBlock(config) for _ in range(config.n_layers)]),
                "ln_f": RMSNorm(config),
                "ff_out": nn.Linear(config.d_model, config.embedding_size, bias=False),
            }
        )

    def forward(self, input_ids):
        x = self.transformer.wte(input_ids)
        for block in self.transformer.blocks:
            x = block(x)
        return self.transformer.ff_out(self.transformer.ln_f(x))


class LLaDAModelLM(PreTrainedModel):
    config_class = LLaDAConfig
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.model = LLaDAModel(config)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, past_key_values=None, use_cache=None):
        """`attention_mask` is taken and not looked at, as in the published code."""
        if past_key_values is not None or use_cache:
            raise AssertionError("kvcache is not supported for MDM")
        return CausalLMOutputWithPast(logits=self.model(input_ids))

    def get_input_embeddings(self):
        return self.model.transformer.wte

    def get_output_embeddings(self):
        return self.model.transformer.ff_out
