"""Worlds in which an output does something; one folder each."""
