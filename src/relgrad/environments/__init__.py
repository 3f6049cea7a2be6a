"""Worlds in which an output does something; one folder each.

forms/       generated web forms, plans that fill them in, and two executors of plans
sites/       pages of sites that somebody else wrote, and plans on them
sandbox/     generated code, executed where it can do no harm
benchmarks/  published problem sets, and what counts as a right answer
puzzles/     permutations, Sudoku of 4 x 4, Countdown, and their verifiers
lists/       programs of list operators, learnt from examples
workflows/   programs of operators that ask a language model, executed on problems
loopback.py  the web server of those that serve pages
"""
