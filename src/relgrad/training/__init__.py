"""The loops.

grpo.py             credit and update: the learner
experience.py       where a generation batch comes from: sampled from the policy and rewarded
remote.py           completions that a server writes in the policy's place
replay.py           the past mixed in
searched.py         tree search where the policy's own samples all fail
batch.py            one generation batch: rows, credit, metrics
credit.py           the credit that a recipe asks for
kept_experience.py  experience in files
settings.py         a recipe's `grpo` section
length.py           steps, or epochs counted in steps
sft.py              the supervised loop
polychromic.py      the diversity of what is written, as a term beside the supervised loss
targets.py          the text that a column gives to learn
parity.py           whether fresh samples are scored as they were drawn
memory.py           out of memory: what to lower
optimizer.py        AdamW, schedule, refusal of what is not finite
checkpoint.py       save and continue
"""
