"""Generated web forms, plans that fill them in, and two executors of plans: in process, and in a real browser.

plan.py      the grammar of plans
outcome.py   what came of a plan, and how right it was
making/      forms from families, fields and values
pages/       a form as a page, and a server of pages
executing/   plans executed, on the parsed page or in Chromium
"""
