"""Supervised losses of fill-in: smoothed targets, a weight by how much is hidden, a head that learns which fills are wrong."""
