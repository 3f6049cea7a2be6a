"""A small site in the manner of other people's, to try and to test with.

server.py      serves it: `python -m relgrad.environments.sites.example.server PORT` shows it in your own browser
pages/         its thirteen pages
cases.py       made cases.jsonl, which says what to enter
"""
