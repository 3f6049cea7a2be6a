"""Rewards and log-probabilities in, credit and losses out. Pure: tensors in, tensors out.

advantages.py   group-relative credit, per completion or per decision
diversity.py    the diversity of a set of samples, and its leave-one-out credit
divergences.py  k1, k2, k3 and the exact KL
losses.py       clipped surrogate, CISPO, REINFORCE, and how they are averaged
"""
