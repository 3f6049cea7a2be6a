"""Masked text: vocabularies, corpora, masks and files of masked samples. Policies, tasks and rewards share it."""
