"""What every room stands on.

errors.py      RelgradError; no torch
types.py       what travels: Prompt, Rollouts, Experience, Score, RewardTable
protocols.py   what the loops know of policies, rewards, losses and trackers; what only some can do
options.py     options of `relgrad sample` that only some kinds of policy have; no torch
tables.py      tables of several parts as one
ranks.py       the processes that run one job together
settings.py    the base of all settings: unknown keys are errors
addresses.py   addresses of servers, checked; no torch
whole_text.py  text that a file can hold; no torch
secrets.py     `env:NAME` in recipes; what is never written or shown; no torch
randomness.py  random numbers as a function of seed, purpose and item
registry.py    find a policy, task, reward, judge or kind of stage by the name of its file
live.py        objects of the running script, which no file can hold; no torch
run_folder.py  the files of a run; no torch
checksums.py   sizes and digests of files, by which damage and change are noticed; no torch
lifeline.py    a process that ends when the one that started it does; no torch
memory.py      out of memory becomes an error that says what to lower
allocator.py   freed memory is kept for the next allocation; no torch
"""
