"""Supervised losses of fill-in.

label_smoothing.py    smoothed targets
mask_ratio_weight.py  a weight by how much is hidden
critic_head.py        a head that learns which fills are wrong
"""
