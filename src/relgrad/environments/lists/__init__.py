"""Programs of list operators, learnt from examples: what a program does to a list, which programs do the same, tasks by a seed.

operators.py  what a step can be: 18 functions of a list of whole numbers
program.py    steps one after the other: as text, executed, and the hash that programs doing the same share
functions.py  every function that programs of up to so many steps compute, by its shortest program
examples.py   inputs and outputs that tell a function from shorter ones, and how a person writes them
tasks.py      functions dealt out to the parts of a task, and the order in which they are trained on
problem.py    a task as a search walks through it: states are the values that the visible examples have become
"""
