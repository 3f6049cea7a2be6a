"""A server with hand-made pages for tests: every kind of control, label and submission, and traps. It notes what it was sent."""

# ruff: noqa: E501 - a control stands on one line of a page

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KINDS = """<!doctype html><title>Kinds</title><form method=post action=/echo enctype=multipart/form-data>
<label for=t>Full name</label><input id=t name=text>
<label>Mail (private)<input name=email type=email></label>
<input name=tel type=tel placeholder="Phone number">
<input name=url type=url aria-label="Home page">
<b id=pw>Password:</b><input name=password type=password aria-labelledby=pw>
<label>Loan Amount ($)<input name=number type=number step=any></label>
<label>Volume<input name=range type=range min=0 max=10></label>
<label>Born<input name=date type=date></label>
<label>Alarm<input name=time type=time></label>
<label>Departure<input name=when type=datetime-local></label>
<label>Expires<input name=month type=month></label>
<label>Calendar week<input name=week type=week></label>
<label>Paint<input name=color type=color></label>
<label>Letter<input name=file type=file></label>
<label>Photo<input name=photo type=file></label>
<label>Term<select name=term><option value="">-</option><option value=36>36 months</option><option value=60>60 months</option></select></label>
<label>Toppings<select name=toppings multiple><option value=h>Ham</option><option value=o>Olives</option><option value=c>Cheese</option></select></label>
<fieldset><legend>Size</legend><label><input type=radio name=size value=s>Small</label><label><input type=radio name=size value=l>Large</label></fieldset>
<fieldset><legend>Days</legend><label><input type=checkbox name=days value=mo>Monday</label><label><input type=checkbox name=days value=tu>Tuesday</label></fieldset>
<div>Member?<label><input type=radio name=member value=1>Yes</label><label><input type=radio name=member value=0>No</label></div>
<label><input type=checkbox name=news checked>Newsletter</label><label><input type=checkbox name=terms>I agree to the terms</label>
<label>Remarks<textarea name=remarks></textarea></label>
<label>Fruit<input name=fruit list=fruits><datalist id=fruits><option value=Apple><option value=Pear></datalist></label>
<div contenteditable role=textbox aria-label=Biography style="min-height:1em" oninput="bio.value=this.innerText"></div><input type=hidden name=bio id=bio>
<input name=membership_type><input id=lastVisit name=lv>
<p>Nickname: <input name=nick></p>
<button type=reset>Reset</button><button>Send</button></form>"""
"""Every kind of control, found by every kind of name."""

KIND_VALUES: dict[str, Any] = {
    "Full name": "Ada Lind", "mail": "ada@post.org", "phone number": "030 123", "HOME PAGE": "https://a.example/", "Password": "s3cret",
    "Loan amount": "$1,200.50", "Volume": "7", "Born": "March 5th, 1990", "Alarm": "2:30 PM", "Departure": "2024-05-06 07:08",
    "Expires": "June 2027", "Calendar week": "2024-02-07", "Paint": "navy", "Letter": "letter.pdf", "Photo": "None", "Term": "36",
    "Toppings": ("Ham", "cheese"), "Size": "large", "Days": ("Monday", "Tuesday"), "Member?": True, "Newsletter": False,
    "I agree to the terms": True, "Remarks": "one\ntwo", "Fruit": "Pear", "Biography": "I was born.", "Membership type": "gold",
    "Last visit": "May", "Nickname": "Didi",
}  # fmt: skip
KIND_SENT = (
    ("text", "Ada Lind"), ("email", "ada@post.org"), ("tel", "030 123"), ("url", "https://a.example/"), ("password", "s3cret"),
    ("number", "1200.50"), ("range", "7"), ("date", "1990-03-05"), ("time", "14:30"), ("when", "2024-05-06T07:08"),
    ("month", "2027-06"), ("week", "2024-W06"), ("color", "#000080"), ("file", "letter.pdf"), ("photo", ""), ("term", "36"),
    ("toppings", "h"), ("toppings", "c"), ("size", "l"), ("days", "mo"), ("days", "tu"), ("member", "1"), ("terms", "on"),
    ("remarks", "one\ntwo"), ("fruit", "Pear"), ("bio", "I was born."), ("membership_type", "gold"), ("lv", "May"), ("nick", "Didi"),
)  # fmt: skip

STILL = """<!doctype html><title>Still</title><form action=/echo method=post enctype=multipart/form-data>
<label>Name<input name=name required minlength=2 maxlength=8></label><label>Mail<input name=mail type=email></label>
<label>Pages<input name=pages type=number min=1 max=9></label><label>Day<input name=day type=date></label>
<label>Size<select name=size required><option value="">-</option><option value=s>Small</option><option value=l>Large</option></select></label>
<label>Toppings<select name=toppings multiple><option value=h>Ham</option><option value=o selected>Olives</option></select></label>
<fieldset><legend>Pay</legend><label><input type=radio name=pay value=c>Cash</label><label><input type=radio name=pay value=b>Bank</label></fieldset>
<label><input type=checkbox name=news checked>News</label><label>CV<input name=cv type=file></label>
<label>Notes<textarea name=notes></textarea></label><input type=hidden name=action value=go><button name=b value=1>Send</button></form>"""
"""A page without scripts; one of its fields hides the form's own `action`."""
STILL_PLAN = """fill Name: Ada
fill Mail: ada@post.org
fill Pages: 3
fill Day: March 5, 2024
choose Size: Large
choose Toppings: Ham
fill Pay: bank
uncheck News
fill CV: cv.txt
fill Notes: a\\nb
submit"""

TRAPS = """<!doctype html><title>Traps</title><style>.off{position:absolute;left:-9999px}.styled{position:absolute;opacity:0;width:0;height:0}</style>
<form action=/echo method=post>
<fieldset><legend>Billing</legend><label>Street<input name=b_street></label></fieldset>
<fieldset><legend>Delivery</legend><label>Street<input name=d_street></label></fieldset>
<label class=off>City<input name=trap></label><label>City<input name=city></label>
<div hidden><label>Zip<input name=zip1></label></div><label>Zip<input name=zip2></label>
<label>Rank<input name=rank disabled></label><label>Account<input name=account readonly value=77></label>
<label>Code<input name=code oninput="this.value=this.value.toUpperCase()"></label>
<label>Short<input name=short maxlength=3></label>
<label>Notes (optional)<input name=notes></label><label>Weight (kg)<input name=weight type=number></label>
<label>Delivery note one<input name=n1></label><label>Delivery note two<input name=n2></label>
<label>Organisation<input name=org></label>
<label><input type=checkbox class=styled name=fancy><span>Fancy box</span></label>
<label>Kind<select name=kind id=kind><option>Plain</option><option value=x>Special</option></select></label><div id=more></div>
<label>Taken<select name=taken><option>Free</option><option disabled>Gone</option></select></label>
<button>Send</button></form>
<form action=/other method=post><label>City<input name=other_city></label><button>Other</button></form>
<script>kind.onchange=()=>setTimeout(()=>{more.innerHTML='<label>Special wish<input name=wish></label>'},200)</script>"""
"""A plan is right to find or to refuse each of these, see test_sites_browser.py."""

FORM = (
    "<label>Town<input name=town></label><label><input type=checkbox name=ok>Fine</label><button>Send</button></form>"
)
SEND = (
    "<!doctype html><form id=f>"
    + FORM
    + "<p id=said></p><script>f.onsubmit=event=>{event.preventDefault();const d=new FormData(f);"
)
SENDING: dict[str, str] = {
    "urlencoded": f"<!doctype html><form action=/echo method=post>{FORM}",
    "multipart": f"<!doctype html><form action=/echo method=post enctype=multipart/form-data>{FORM}",
    "get": f"<!doctype html><form action=/echo>{FORM}",
    "json": SEND + "fetch('/echo',{method:'POST',headers:{'Content-Type':'application/json'},body:JSON.stringify({town:d.get('town'),ok:d.has('ok')})})}</script>",
    "nested": SEND + "fetch('/echo',{method:'PUT',body:JSON.stringify({data:{town:d.get('town'),ok:d.has('ok')?'on':'no'}})})}</script>",
    "xhr": SEND + "const x=new XMLHttpRequest();x.open('POST','/echo');x.send(d)}</script>",
    "late": SEND + "setTimeout(()=>fetch('/echo',{method:'POST',body:new URLSearchParams(d)}),300)}</script>",
    "beacon": SEND + "fetch('/echo',{method:'POST',body:new URLSearchParams(d)}).then(()=>navigator.sendBeacon('/echo','seen'))}</script>",
    "by_script": f"<!doctype html><form id=f action=/echo method=post>{FORM.replace('<button>', '<button type=button onclick=f.submit()>')}",
    "confirm": f"<!doctype html><form action=/echo method=post onsubmit=\"return confirm('Sure?')\">{FORM}",
    "shadow": "<!doctype html><div id=host></div><script>host.attachShadow({mode:'open'}).innerHTML="
    f"'<form action=/echo method=post>{FORM}'</script>",
}  # fmt: skip
"""Ways to send the same form."""

ERROR = "<!doctype html><form action=/again method=post><p class=error>Town: no such town</p>" + FORM
VERDICTS: dict[str, tuple[int, str, str]] = {
    "/again": (200, "text/html", ERROR),
    "/kept": (
        200,
        "text/html",
        FORM.replace("name=town", "name=town value=Bonn").replace("<label>Town", "<form><label>Town", 1),
    ),
    "/cleared": (200, "text/html", f"<form method=post>{FORM}<p>Thank you</p>"),
    "/json-no": (200, "application/json", '{"ok": false}'),
    "/json-errors": (200, "application/json", '{"errors": {"town": "unknown"}, "message": "success"}'),
    "/json-yes": (201, "application/json", '{"message": "Submitted with no error"}'),
    "/broken": (500, "text/html", "success"),
    "/moved": (303, "/thanks", ""),
}
"""Answers to a form that is sent there."""

PAGES: dict[str, str] = {
    "/kinds": KINDS, "/still": STILL, "/traps": TRAPS, "/thanks": "<!doctype html><h1 id=t>Thank you, Ada</h1>", "/none": "<!doctype html><p>Nothing here",
    "/captcha": f"<!doctype html><form method=post>{FORM}<div class=g-recaptcha data-sitekey=x></div>",
    "/hang": f"<!doctype html><form onsubmit='for(;;);'>{FORM}", "/dialogs": f"<!doctype html><form onsubmit='for(;;)alert(1)'>{FORM}",
    "/silent": f"<!doctype html><form action=/never method=post>{FORM}",
    "/required": f"<!doctype html><form action=/echo method=post>{FORM.replace('name=town', 'name=town required')}",
    "/greedy": "<!doctype html><link rel=stylesheet href=http://cdn.example.org/a.css><img src=http://127.0.0.1:8999/x.png>"
    "<script src=https://fonts.example.org/f.js></script><script>open('/thanks');new WebSocket('ws://127.0.0.1:8997/');"
    f"navigator.geolocation.getCurrentPosition(()=>0);fetch('/away').catch(()=>0)</script><form action=/echo method=post>{FORM}",
    "/dialog": f"<!doctype html><form id=f action=/echo method=post onsubmit='sure.showModal();return false'>{FORM}"
    "<dialog id=sure><button onclick=sure.close()>Back</button><button onclick=f.submit()>Yes, send</button></dialog>",
    "/lively": f"<!doctype html><form action=/echo method=post>{FORM}<script>fetch('/never',{{method:'POST'}}).catch(()=>0);"
    "const again=()=>setTimeout(again,50);again()</script>",
    "/twice": f"<!doctype html><form action=/twice method=post>{FORM.replace('town', 'first')}",
    "/visits": "<!doctype html><form action=/echo method=post><input type=hidden name=n id=n>"
    "<label>Town<input name=town></label><button>Send</button></form><script>n.value=[localStorage.n,sessionStorage.n,document.cookie,"
    "window.name].filter(Boolean);localStorage.n=sessionStorage.n=window.name=1;document.cookie='seen=1'</script>",
    **{f"/sending/{name}": page for name, page in SENDING.items()},
    **{f"/to{path}": f"<!doctype html><form action={path} method=post>{FORM}" for path in VERDICTS if "json" not in path},
    **{f"/to{path}": SEND + f"fetch('{path}',{{method:'POST',body:d}})}}</script>" for path in VERDICTS if "json" in path},
}  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    """GET gives a page, POST anywhere is noted and answered."""

    got: list[tuple[str, bytes]]
    cookies: list[str]
    hold: threading.Event

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.cookies.append(self.headers.get("Cookie", ""))
        if path == "/away":
            self._answer(302, "http://127.0.0.1:8998/elsewhere", "")
        elif path in PAGES:
            self._answer(200, "text/html", PAGES[path])
        else:
            self._answer(200 if path == "/echo" else 404, "text/html", "<!doctype html><p>here")

    def do_POST(self) -> None:
        self.got.append((self.path, self.rfile.read(int(self.headers.get("Content-Length", "0")))))
        if self.path == "/never":
            self.hold.wait(60)
        if self.path == "/twice":
            self._answer(200, "text/html", f"<!doctype html><form action=/echo method=post>{FORM}")
            return
        self._answer(*VERDICTS.get(self.path, (200, "text/html", "<!doctype html><p>Received")))

    do_PUT = do_POST

    def _answer(self, status: int, kind: str, text: str) -> None:
        self.send_response(status)
        self.send_header("Location" if 300 <= status < 400 else "Content-Type", kind)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextmanager
def served() -> Iterator[tuple[str, type[Handler]]]:
    """The address of the server, and its handler with what it was sent."""
    handler = type("Noting", (Handler,), {"got": [], "cookies": [], "hold": threading.Event()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", handler
        handler.hold.set()
        server.shutdown()
