"""The report: a run folder in, one self-contained HTML file out. Imports no torch and makes no network request.

read.py        what a run folder holds
truth.py       which places of a text are right
cards.py       prompts before and after, those that changed most first
charts.py      metrics to chart data
result.py      what a run came to, for the head of the page
words.py       numbers, times and settings in words
templates.py   the templates, each compiled once
page.py        the page, from the templates, style and scripts beside it
search.py      the page of a search, its trees to click through
comparison.py  the page of `relgrad compare`, in the same style
tables.py      a comparison as CSV and LaTeX
figures.py     its figures, as PDF and SVG
"""

from relgrad.monitor.report.page import write_report

__all__ = ["write_report"]
