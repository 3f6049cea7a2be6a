"""The diffusion GPT: language model, token classifier, sequence scorer.

network.py         the transformer and its heads
original_files.py  checkpoints and vocabularies of the original trainer, read
original_batches.py  its batch files, read
original_export.py  checkpoints for its own sampler, written
"""
