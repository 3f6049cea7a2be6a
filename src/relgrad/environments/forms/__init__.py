"""Generated web forms, plans that fill them in, and two executors of plans: in process, and in a real browser.

plan.py      the grammar of plans
sentences.py plans in sentences, as other people's agents write them
making/      forms from families, fields and values
outcome.py   what came of a plan, and how right it was
pages/       a form as a page
executing/   plans executed, on the parsed page or in Chromium
serve.py     forms in your own browser

Each knows only what stands above it.
"""
