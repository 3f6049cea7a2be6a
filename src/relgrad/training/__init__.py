"""The loops.

grpo.py        sample, score, compare within the group, update
batch.py       one generation batch: rows, credit, metrics
sft.py         the supervised loop
optimizer.py   AdamW, schedule, refusal of what is not finite
checkpoint.py  save and continue
"""
