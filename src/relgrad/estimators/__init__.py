"""How the log-probability of a trajectory is computed, or estimated, from a network and the law of its decisions.

interface.py     what an estimator asks of a policy's process, and what it answers
exact.py         decision by decision, each at the state in which it was taken
kinds.py         which of them a recipe can name
surrogate.py     a finished text looked at in passes, by one of the plans below
passes.py        what a pass is, and how a trace keeps it
mean_field.py    everything masked at once (d1, wd1)
coupled.py       everything masked, and a mask beside its complement (DiffuCoder)
elbo.py          random masks; with their complements ESPO's
bounds.py        samples of the ELBO kept apart: BGPO, SPG
merged_steps.py  several steps of the trajectory in one pass (StepMerge, TraceRL)
"""
