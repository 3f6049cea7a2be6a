"""Pages that somebody else wrote, served by somebody else's server: plans are executed on them in Chromium.

spec.py        what a recipe says of a site
serving.py     its server, from start to end
cases.py       what to enter, from the files that people have
controls.py    what a page offers: controls.js reads it in the browser, watching.js what the page has begun
finding.py     which control a label means
entering.py    a value as a control takes it
buttons.py     which button submits
visit.py       one plan on one page
wire.py        a page's one way out, where what it sends is read
submission.py  what was sent
verdict.py     whether the server took it
accuracy.py    how right it was
outcome.py     what came of a plan
tab.py         a tab, emptied between plans
chromium.py    the browser: its life, deaths and time-outs
still.py       a page without scripts, in process
agreement.py   which pages may be executed in process
site.py        all of it together
telling.py     a case in words: prompt and reference plan
check.py       what a policy can reach on the pages, before any training
example/       a small site to try

Each knows only what stands above it, and environments/forms.
"""
