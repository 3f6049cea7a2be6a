"""What masked diffusion is trained with.

masked_loss.py  the cross-entropy of masked positions, weighted by how many are masked
"""
