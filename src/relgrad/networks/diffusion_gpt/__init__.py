"""The diffusion GPT: language model, token classifier, sequence scorer.

network.py         the transformer and its heads
original_files.py  checkpoints and batches of the original trainer
"""
