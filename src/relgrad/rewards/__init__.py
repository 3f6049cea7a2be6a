"""Rewards: what an output is worth. One file per kind; `build(settings)` gives a reward, `combine` calls them all."""
