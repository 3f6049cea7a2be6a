"""Workflows: small programs of operators that ask a language model, executed on problems.

language.py   the language: what a workflow is, read, written, in canonical form
prompts.py    what operators say to the model
problem.py    problems, their files, and when an answer is right
operators.py  what the operators do
execute.py    a workflow on a problem: its answer, its calls, or why there is none
sandboxed.py  programs that a model wrote, in the sandbox
compiled.py   a workflow as a Python program of the operators
programs.py   such a program executed, in the sandbox
edits.py      everything that one edit makes of a workflow, with probabilities
noisy.py      problems for the scripted solver, and the best workflow of all, by enumeration
described.py  such problems told in words, each with its own rates and prices
aflow.py      workflows of AFlow's workspaces, read and never executed
file.py       workflows in files
sources.py    problems by the kind that a recipe names
"""
