"""Stages: one file a kind. A kind of stage offers `Settings` and `KIND`; a recipe names it by `stage`.

grpo.py      trains a policy by GRPO on rewards
sft.py       trains a policy on the task's own targets
polychromic.py trains a policy on the targets and keeps what it writes diverse
judge.py     trains a judge of what the policy writes, and audits it
settings.py  what every stage has: its base of settings
kind.py      what a kind of stage is: how its parts are built, what it does at its end
examples.py  a task's prompts with their targets
"""
