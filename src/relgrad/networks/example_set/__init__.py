"""A network that reads a set of examples, each a list of numbers and what it should become, and scores the next decision.

network.py  its features, its layers, its configuration
"""
