"""Judges: what a `judge` stage trains. One file per kind; `build(settings, seed, policy, start)` gives a trainable judge."""
