"""Recipes become runs.

recipe.py          YAML in, typed settings out
yaml_text.py       YAML as recipes are written: which text is a number
aliases.py         setting names of the original trainers, and what they are called here
original_config.py Python configuration files of the diffusion-GPT trainer
build.py           every part found by its kind, checked, built
named_stages.py    how stages are called: folders, labels, stage:LABEL, RUN:LABEL
starts.py          where stages start, and which of them start over together
run.py             stages run one after the other, continued where they were stopped
gate.py            whether a stage reached what its recipe asks for
hand_off.py        whether a stage starts from what the one before ended with
course.py          what happens between the steps: log, warn, evaluate, end, save
limits.py          SIGTERM and max_hours end a command between two steps
training_log.py    what a stage told people, with times and tracebacks
evaluations.py     which part of the task is looked at when, and what is decided by it
read_stage.py      what a stage's folder says of the stage that made it
same_recipe.py     whether a run folder holds a run of this recipe
named_files.py     the files that a recipe names, and whether they are those that a run began with
lock.py            one run folder, one writer
plan.py            what a run would do, and what it would refuse
estimate.py        what it would take: memory, hours, money
machine.py         what the machine has, and how fast it is
use.py             what was trained, used: sample, evaluate, audit, demo
compare.py         policies compared: the same prompts, the same rewards
pairwise.py        completions in pairs, judged by a language model
suite.py           a comparison from what was written, with the evaluation suite
contenders.py      what is compared, opened, and which runs are seeds of one recipe
sharing.py         what was trained, written for others: merged weights, a folder with a model card, the hub
tracking.py        metrics.jsonl, TensorBoard, Weights & Biases, trackio
search.py          relgrad search: its recipe and its folder
search_test.py     what a search found, on problems kept for the test
decision_search.py relgrad search with a policy as prior, prompt by prompt
workflows.py       workflows executed outside of a search
about.py           what a stage trains, in words, for the head of its report
environment.py     what a run ran on
"""
