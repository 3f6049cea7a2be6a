"""The report: a run folder in, one self-contained HTML file out. Imports no torch and makes no network request.

read.py        what a run folder holds
charts.py      metrics to chart data
page.py        the page, from the template, style and script beside it
comparison.py  the page of `relgrad compare`, in the same style
"""

from relgrad.monitor.report.page import write_report

__all__ = ["write_report"]
