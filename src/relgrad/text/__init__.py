"""Masked text, and replies to posts. Policies, tasks and rewards share it.

vocabulary.py   text to ids and back: characters, bytes, a tokenizer; mask, padding and summary ids
corpus.py       a text to learn from and, apart from it, texts to judge by; windows of it
answer.py       rows of a prompt and a fixed number of positions for its answer
masking.py      random, sticky, span and line masks
sample_file.py  one safetensors file of masked samples
stream.py       a folder of them: a producer and any number of consumers
show.py         what masks look like
ngram.py        an n-gram model of characters
embedding.py    sentence embeddings by a small encoder
distance.py     how far texts are from each other: by n-grams, by embeddings
replies/        rows of a file of replies, their cleaning and splitting; the built-in data set
"""
