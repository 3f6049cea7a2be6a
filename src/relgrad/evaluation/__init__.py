"""Held-out evaluation.

held_out.py     sample, score, and say how sure the score is
searched.py     what a tree search solves, guided by the policy
metric.py       what is measured beside rewards
comparison.py   every figure of several policies, paired, with intervals over seeds, families or prompts
generations.py  what policies wrote, in a file
answers.py      what the suite's metrics see, and their protocol
suite.py        which metrics a recipe asks for, all of them measured
lexical.py      self-BLEU and distinct n-grams of a prompt's completions
semantic.py     their diversity by meaning
passing.py      pass@k by a pass judge, the expected best of k
references.py   ROUGE and matched embeddings against references
pairwise.py     which of two completions a language model prefers
perplexity.py   how surprising completions are to the base model
curves.py       pass@k and best of k over k, with bands; DER and the collapse point
adapter_norms.py  how large an adapter is, layer by layer
significance.py sign flips, Holm, d_z, Cliff's delta, intervals over seeds and prompts
verdicts.py     these for every figure of a comparison
cooled.py       the untrained start, cooled to where the trained policy went
likelihood.py   the held-out loss of supervised stages
statistics.py   intervals, paired differences, pass@k
calibration.py  how good a judge is: ranking, calibration, what its score goes along with
"""
