"""What networks share: where weights lie, what they were, what they are on average.

device.py           on which device a model runs
folder.py           a stage's folder, or the newest checkpoint in it; saving and loading our own networks
facts.py            what policies say of themselves in the same words
files.py            reading files of weights: what is damaged, a pointer or no number is refused
keeper.py           what a policy keeps of its weights: the trained ones, their start, their average
reference.py        the frozen start, put in place for a while
average.py          a moving average of the weights
whole.py            only whole weights can be kept so: sharded ones are refused
seeded_dropout.py   dropout from given random numbers
safe_pickle.py      reading pickles without running them
"""
