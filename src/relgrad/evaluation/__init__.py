"""Held-out evaluation.

held_out.py     sample, score, and say how sure the score is
metric.py       what is measured beside rewards
comparison.py   every figure of several policies, paired, with intervals over seeds, families or prompts
cooled.py       the untrained start, cooled to where the trained policy went
likelihood.py   the held-out loss of supervised stages
statistics.py   intervals, paired differences, pass@k
calibration.py  how good a judge is: ranking, calibration, what its score goes along with
"""
