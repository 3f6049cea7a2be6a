"""How the log-probability of a trajectory is computed, or estimated, from a network and the law of its decisions.

interface.py  what an estimator asks of a policy's process, and what it answers
exact.py      decision by decision, each at the state in which it was taken
"""
