"""ReFusion: Qwen3 that writes slots in any order under causal attention (Li et al. 2025, arXiv:2512.13586).

layout.py   the network's input: what stands where, and what sees what
network.py  the way through it: hidden states at chosen places, the head, a cache
load.py     from a folder or the hub: Qwen3's weights and ReFusion's special tokens
tiny.py     a tiny one with random weights
"""
