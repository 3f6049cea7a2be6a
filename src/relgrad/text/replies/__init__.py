"""Replies to posts: rows of a data file, their cleaning and splitting, and a data set made by a grammar.

rows.py        one line of JSON, checked: what is read, and why lines are dropped
cleaning.py    spaces, stretched words, entities; handles, links, e-mail addresses and ids taken out
near.py        which texts are nearly the same
splitting.py   two phases, validation and test, by post and engagement, with checks that can fail
figure.py      the split as a picture
made.py        the built-in data set; its sentences are topics_1.yaml, topics_2.yaml and slots.yaml
"""
