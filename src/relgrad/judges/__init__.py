"""Judges: what a `judge` stage trains. One file a kind; `build(settings, seed, policy, start)` gives a trainable judge.

engagement.py  a judge of replies, from likes
refill.py   a judge of text that a fill-in policy refilled: training and audit
network.py  its network: logits, calibrated scores, its folder
"""
