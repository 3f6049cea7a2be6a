"""Judges: what a `judge` stage trains. One file per kind; `build(settings, seed, policy)` gives a trainable judge."""
