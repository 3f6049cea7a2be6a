"""Forms as pages, for executors and for people.

page.py   HTML of forms, outcomes and films, from the templates beside it
"""
