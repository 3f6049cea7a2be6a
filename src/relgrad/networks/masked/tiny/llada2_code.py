"""A LLaDA 2 in small, with the names and the interface of the published one. It stands by itself: folders hold a copy."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class LLaDA2MoeConfig(PretrainedConfig):
    model_type = "llada2_moe"


class RMSNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):
        return self.weight * (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads, self.kv_heads, self.size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        width = (self.heads + 2 * self.kv_heads) * self.size
        self.query_key_value = nn.Linear(config.hidden_size, width, bias=False)
        self.dense = nn.Linear(self.heads * self.size, config.hidden_size, bias=False)
        self.query_layernorm = RMSNorm(self.size, config.rms_norm_eps)
        self.key_layernorm = RMSNorm(self.size, config.rms_norm_eps)

    def forward(self, x, additive, position_ids):
        fused = self.query_key_value(x).unflatten(-1, (-1, self.size)).transpose(1, 2)
        q, k, v = fused.split([self.heads, self.kv_heads, self.kv_heads], 1)
        q, k = self.rotated(self.query_layernorm(q), position_ids), self.rotated(self.key_layernorm(k), position_ids)
        k, v = (t.repeat_interleave(self.heads // self.kv_heads, 1) for t in (k, v))
        weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(self.size) + additive, -1)
        return self.dense((weights @ v).transpose(1, 2).flatten(2))

    def rotated(self, x, position_ids):
        """Half of every head's entries are rotated."""
        turned, rest = x.chunk(2, -1)
        half = turned.shape[-1] // 2
        rate = 10000.0 ** (-torch.arange(half, device=x.device).float() / half)
        angle = position_ids[:, None, :, None].float() * rate
        cos, sin = (f(angle).to(x.dtype).repeat(1, 1, 1, 2) for f in (torch.cos, torch.sin))
        first, second = turned.chunk(2, -1)
        return torch.cat([turned * cos + torch.cat([-second, first], -1) * sin, rest], -1)


class MLP(nn.Module):
    def __init__(self, config, inner):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, inner, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, inner, bias=False)
        self.down_proj = nn.Linear(inner, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.Module):
    """Of all experts a token takes the few with the highest scores, weighted by them."""

    def __init__(self, config):
        super().__init__()
        self.per_token = config.num_experts_per_tok
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = nn.ModuleList([MLP(config, config.moe_intermediate_size) for _ in range(config.num_experts)])

    def forward(self, x):
        score = torch.sigmoid(self.gate(x))
        chosen = score.topk(self.per_token, -1)
        weight = torch.zeros_like(score).scatter(-1, chosen.indices, chosen.values)
        weight = weight / weight.sum(-1, keepdim=True)
        return sum(weight[..., n : n + 1] * expert(x) for n, expert in enumerate(self.experts))


class Layer(nn.Module):
    def __init__(self, config, number):
        super().__init__()
        dense = number < config.first_k_dense_replace
        self.attention = Attention(config)
        self.mlp = MLP(config, config.intermediate_size) if dense else Experts(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x, additive, position_ids):
        x = x + self.attention(self.input_layernorm(x), additive, position_ids)
        return x + self.mlp(self.post_attention_layernorm(x))


class LLaDA2MoeModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Layer(config, number) for number in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, input_ids, attention_mask, position_ids):
        x = self.word_embeddings(input_ids)
        for layer in self.layers:
            x = layer(x, attention_mask, position_ids)
        return self.norm(x)


class LLaDA2MoeModelLM(PreTrainedModel):
    config_class = LLaDA2MoeConfig
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.model = LLaDA2MoeModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, use_cache=False):
        """`attention_mask` is additive, [B, 1, L, L]."""
        if attention_mask is None or attention_mask.dim() != 4 or not attention_mask.is_floating_point():
            raise ValueError("an additive mask [B, 1, L, L] is needed")
        return CausalLMOutputWithPast(logits=self.lm_head(self.model(input_ids, attention_mask, position_ids)))

    def get_input_embeddings(self):
        return self.model.word_embeddings

    def get_output_embeddings(self):
        return self.lm_head
