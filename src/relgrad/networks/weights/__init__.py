"""What networks share: where weights lie, what they were, what they are on average.

device.py           on which device a model runs
folder.py           a stage's folder, or the newest checkpoint in it; saving and loading our own networks
reference.py        the frozen start, put in place for a while
average.py          a moving average of the weights
seeded_dropout.py   dropout from given random numbers
safe_pickle.py      reading pickles without running them
"""
