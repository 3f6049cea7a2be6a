"""An SDAR in small, with the names and the interface of the published one, on transformers' Qwen3. Folders hold a copy."""

import torch
from torch import nn
from transformers import Qwen3Config, Qwen3Model, Qwen3PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class SDARConfig(Qwen3Config):
    model_type = "sdar"


class SDARForCausalLM(Qwen3PreTrainedModel):
    config_class = SDARConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = Qwen3Model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, use_cache=False):
        """`attention_mask` is bool [B, 1, Q, K]; the caller draws the blocks."""
        zero = torch.zeros((), dtype=self.lm_head.weight.dtype, device=input_ids.device)
        out = self.model(
            input_ids,
            attention_mask=torch.where(attention_mask, zero, torch.finfo(zero.dtype).min),
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )
        return CausalLMOutputWithPast(logits=self.lm_head(out.last_hidden_state), past_key_values=out.past_key_values)
