"""Runs started elsewhere: a job file in the target's own format, and what became of it.

job.py        what is to be started: recipe, processes, limits, secrets by their names
script.py     the shell script that every target runs: attempts that continue the run, SIGTERM passed on, the evaluation
records.py    jobs as they are kept beside the run: runs/<name>/jobs/<job>/
target.py     what a target is, and all there are
job_yaml.py   job files in YAML
following.py  a log that is shown while it grows
targets/      one file a target: local, slurm, ray, anyscale
"""
