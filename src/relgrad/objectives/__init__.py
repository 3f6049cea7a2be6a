"""Rewards and log-probabilities in, credit and losses out. Pure: tensors in, tensors out.

advantages.py   group-relative credit, per completion or per decision
diversity.py    the diversity of a set of samples, and its leave-one-out credit
divergences.py  k1, k2, k3 and the exact KL
bgpo.py         a bound that is linear in the samples of a surrogate
spg.py          a lower bound for good texts, an upper one for bad ones
wd1.py          a likelihood weighted by the softmax of advantages
expert_iteration.py  cross-entropy on what is better than its group
losses.py       clipped surrogate, CISPO, REINFORCE, and how they are averaged
"""
