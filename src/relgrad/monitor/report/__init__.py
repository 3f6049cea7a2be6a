"""The report: a run folder in, one self-contained HTML file out. Imports no torch and makes no network request."""

from relgrad.monitor.report.page import write_report

__all__ = ["write_report"]
