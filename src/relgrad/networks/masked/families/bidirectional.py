"""Causal language models of transformers whose attention looks to both sides, to be trained as masked-diffusion models.

As dLLM (github.com/ZHZisZZ/dllm) does it with "a2d" folders, which this family reads too. Where the vocabulary has no mask, one is
added; its row, and that of the head, is the mean of the others. What comes out of a causal model speaks for the next position:
`policy.shift` says whether the new one keeps to that.
"""

from __future__ import annotations

from relgrad.networks.masked.family import Family, Library

A2D = {"a2d-llama": "LlamaForCausalLM", "a2d-qwen2": "Qwen2ForCausalLM", "a2d-qwen3": "Qwen3ForCausalLM"}
"""`model_type` of dLLM's folders, and the class that holds their weights."""

FAMILY = Family(name="bidirectional", model_types=tuple(A2D), library=Library("AutoModelForCausalLM"))
