"""Rewards: what an output is worth. One file a kind; `build(settings)` gives a reward, `combine` calls them all.

combine.py         all rewards of a recipe as one; failures are NaN with a reason
function.py        your own function
exact.py           the expected text, whole or by character
number.py          the expected number
regex.py           a pattern
hidden.py          what was hidden under the masks
words.py           words of a lexicon
judge.py           what trained judges say; they must have passed their audit
language_model.py  how likely a language model finds the text
classifier.py      any sequence classifier as a judge
math_verify.py     the expected mathematical answer
gsm8k.py           GSM8K's number
competition_math.py MATH's boxed answer, as its authors compare it
hotpotqa.py        shared words, as HotpotQA counts them
drop.py            shared words of spans, as DROP counts them
code.py            a program that passes its tests, in the sandbox
reasoning_gym.py   the task's own verifier
puzzles.py         the verifier of a puzzle
forms.py           what a plan for a web form is worth
site.py            what a plan for a page of a site is worth
workflow.py        what a written workflow is worth, executed
diversity.py       the distance to the other completions of the prompt
drafts.py          another reward, asked about drafts too: credit for single steps
python.py          a function of the script that started the run
engagement.py      what a judge that learnt from likes says of a reply
replies/           what a reply to a post is worth, and attacks on that
sensible_reply/    whether a text is a sensible reply to a post: a judge to evaluate by, with labels by hand
list_program.py    whether a list program does what examples show
overlong.py        soft punishment near the length limit

Files whose name begins with _ are what they share. How functions are called and their answers read is _calling and _answers; where
they run is _runners, with _deadline for the main thread, _workers for threads and coroutines, _process and _child, the two ends
of an isolated one, and _ray for workers of a cluster; _columns and _decisions read prompts, _marked a completion.
"""
