"""What every room stands on.

errors.py      RelgradError; no torch
types.py       what travels: Prompt, Rollouts, Experience, Score, RewardTable
protocols.py   what the loops know of policies, rewards, losses and trackers
options.py     options of `relgrad sample` that only some kinds of policy have; no torch
settings.py    the base of all settings: unknown keys are errors
randomness.py  random numbers as a function of seed and purpose
registry.py    find a policy, task, reward, judge or kind of stage by the name of its file
run_folder.py  the files of a run; no torch
"""
