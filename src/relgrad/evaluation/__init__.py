"""Held-out evaluation.

held_out.py     sample, score, and say how sure the score is
statistics.py   intervals, paired differences, pass@k
calibration.py  how good a judge is: ranking, calibration, what its score goes along with
"""
