"""Runs that are started from a Python script or a notebook: what a recipe does, with Python's own values in it.

train.py     `relgrad.train`: from a script's values to a finished run
sections.py  what a script hands over, as the sections of a recipe
run.py       what came of it: scores, samples, figures, the model
"""
