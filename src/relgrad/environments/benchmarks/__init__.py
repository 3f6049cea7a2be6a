"""Published problem sets: what counts as an answer, and whether it is right, as their authors define it. Pure but for code.

numbers.py       numbers in a text, and GSM8K's answers
mathematics.py   MATH's boxed answers
overlap.py       shared words: HotpotQA and DROP
completion.py    the program in a completion
code.py          a program against tests, in the sandbox: HumanEval, MBPP and your own

A scorer gets an answer's text. What a program crashed with is no answer: it never becomes text here (sandbox/outcome.py).
"""
