"""Plans executed.

in_process.py      on the parsed page
parsed_page.py     a page's controls and labels
html_rules.py      HTML's rules for values
browser.py         in Chromium: its life, deaths and time-outs
browser_page.py    one plan on one page of it
own_thread.py      the thread and event loop that a browser lives on
server_verdict.py  the server's side: what was sent, and is it accepted
pictures.py        a picture of every step
"""
