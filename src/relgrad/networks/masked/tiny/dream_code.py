"""A Dream in small, with the names and the interface of the published one, on transformers' Qwen2. Folders hold a copy."""

import torch
from torch import nn
from transformers import Qwen2Config, Qwen2Model, Qwen2PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput


class DreamConfig(Qwen2Config):
    model_type = "Dream"


class DreamModel(Qwen2PreTrainedModel):
    config_class = DreamConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = Qwen2Model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids=None, attention_mask=None, position_ids=None):
        """`attention_mask` is "full", or bool [B, 1, L, L]. Logits at a position speak for the next one."""
        rows, length = input_ids.shape
        if isinstance(attention_mask, str) and attention_mask == "full":
            visible = torch.ones(rows, 1, length, length, dtype=torch.bool, device=input_ids.device)
        elif isinstance(attention_mask, torch.Tensor) and attention_mask.dtype == torch.bool:
            visible = attention_mask
        else:
            raise TypeError(f"Unsupported attention_mask type: {type(attention_mask)}")
        zero = torch.zeros((), dtype=self.lm_head.weight.dtype, device=input_ids.device)
        additive = torch.where(visible, zero, torch.finfo(zero.dtype).min)
        out = self.model(input_ids, attention_mask=additive, position_ids=position_ids, use_cache=False)
        return MaskedLMOutput(logits=self.lm_head(out.last_hidden_state))
