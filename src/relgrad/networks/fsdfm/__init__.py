"""FS-DFM's diffusion transformer, teacher or few-step student.

network.py          the transformer
published_files.py  Apple's checkpoints of it, by name
lora.py             adapters on it, through peft
"""
