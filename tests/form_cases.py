"""Plans on forms for both executors: hand-made cases with their known outcomes, and a strategy for any others."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from hypothesis import strategies as st

from relgrad.environments.forms.executing.in_process import InProcess
from relgrad.environments.forms.making import families, wording
from relgrad.environments.forms.making.form import Field, Form, Option
from relgrad.environments.forms.making.generate import make
from relgrad.environments.forms.making.grammar import Grammar
from relgrad.environments.forms.outcome import Outcome
from relgrad.environments.forms.plan import parse

GRAMMARS = (
    Grammar(),
    Grammar(min_fields=6, max_fields=8, fits=900, types=families.KINDS),
    Grammar(
        min_fields=4, max_fields=8, fits=3000, types=families.KINDS, lines=3, max_value=40, short_labels=False, wording="long"
    ),
)  # fmt: skip


def form_of(*fields: Field, reset: bool = False, layout: str = "stack") -> Form:
    """A form of these fields."""
    return Form("made by hand", 0, Grammar(), "Made by hand", "Send", fields, layout, reset)


def options(*texts: str) -> tuple[Option, ...]:
    return tuple(Option(text, f"{text.lower()}-sent") for text in texts)


TEXT = Field("town", "text", "t", "t-1", "Bonn", attributes={"maxlength": "5"})
MAIL = Field("mail", "email", "e", "e-1", "a@b.de")
NUMBER = Field("age", "number", "n", "n-1", "42", attributes={"min": "18", "max": "99"})
DAY = Field("day", "date", "d", "d-1", "2026-05-17", attributes={"min": "2025-01-01", "max": "2027-12-31"})
SIZE = Field("size", "select", "s", "s-1", "L", options=options("S", "M", "L"))
MUST_SIZE = Field("size", "select", "s", "s-1", "L", required=True, options=options("S", "M", "L"))
PAY = Field("pay", "radio", "p", "p-1", "Cash", options=options("Cash", "Card"))
DAYS = Field("days", "multi", "m", "m-1", ("Mon", "Wed"), options=options("Mon", "Tue", "Wed"), most=2)
NEWS = Field("news", "checkbox", "c", "c-1", False)
TICKED = Field("news", "checkbox", "c", "c-1", False, checked=True)
RULES = Field("rules", "checkbox", "r", "r-1", True, required=True)
ABOUT = Field("about", "textarea", "a", "a-1", "one\ntwo", attributes={"maxlength": "8"})
CODE = Field("code", "text", "k", "k-1", "123-AB", attributes={"pattern": "[0-9]{3}-[A-Z]{2}", "minlength": "3"})
ASKED = Field("name", "text", "q", "q-1", "Ada", required=True)


def outcome(form: Form, plan: str) -> Outcome:
    """What comes of a plan in process."""
    return InProcess().run(form, parse(plan))


@dataclass(frozen=True)
class Case:
    """`executed` is one letter per step, y or n; `sent` is what was submitted, None where nothing was."""

    name: str
    form: Form
    plan: str
    executed: str
    sent: tuple[tuple[str, str], ...] | None
    success: bool = True


def refused(name: str, form: Form, plan: str, executed: str) -> Case:
    """Nothing is submitted."""
    return Case(name, form, plan, executed, None, False)


ONE = form_of(TEXT)
CASES = (
    Case("filled", ONE, "fill town: Bonn\nsubmit", "yy", (("t", "Bonn"),)),
    Case("typed again", ONE, "fill town: Rome\nfill town: Bonn\nsubmit", "yyy", (("t", "Bonn"),)),
    Case("emptied", ONE, "fill town: Rome\nfill town:\nsubmit", "yyy", (("t", ""),)),
    Case("too long is cut", ONE, "fill town: Bonn am Rhein\nsubmit", "yy", (("t", "Bonn "),)),
    Case("no half emoji", ONE, "fill town: abcd😀\nsubmit", "yy", (("t", "abcd"),)),
    Case("half an emoji family", ONE, "fill town: 👨‍👩‍👧\nsubmit", "yy", (("t", "👨‍👩"),)),
    Case("html is text", form_of(ASKED), 'fill name: <b>"&amp;\'\nsubmit', "yy", (("q", '<b>"&amp;\''),)),
    Case("no line break in a line", ONE, "fill town: a\\nb\nsubmit", "yy", (("t", "a b"),)),
    Case("nothing after the line", form_of(ASKED), "fill name: Ada\\n\\n\nsubmit", "yy", (("q", "Ada"),)),
    refused("line breaks alone are nothing", form_of(ASKED), "fill name: \\n\\n\nsubmit", "nn"),
    refused("a line break is the Enter key", form_of(ASKED), "fill name: \\n\nsubmit", "nn"),
    Case("nor does it send or clear", ONE, "fill town: Bonn\nfill town: \\n\nsubmit", "yny", (("t", "Bonn"),)),
    Case("cut after the breaks are gone", ONE, "fill town: Bonns\\n\nsubmit", "yy", (("t", "Bonns"),)),
    Case("a line break before the text", ONE, "fill town: \\na\nsubmit", "yy", (("t", " a"),)),
    Case("mail and a line break", form_of(MAIL), "fill mail: a@b.de\\n\nsubmit", "yy", (("e", "a@b.de"),)),
    Case("a line break is text where there are lines", form_of(ABOUT), "fill about: \\n\nsubmit", "yy", (("a", "\r\n"),)),
    Case("lines", form_of(ABOUT), "fill about: one\\ntwo\nsubmit", "yy", (("a", "one\r\ntwo"),)),
    Case("a line break is one character", form_of(ABOUT), "fill about: abcd\\n\\nefg\nsubmit", "yy", (("a", "abcd\r\n\r\nef"),)),
    Case("a backslash", form_of(ABOUT), "fill about: a\\\\nb\nsubmit", "yy", (("a", "a\\nb"),)),
    Case("lone surrogate", ONE, "fill town: a\ud83d\nsubmit", "yy", (("t", "a\ufffd"),)),
    Case("unknown label", ONE, "fill city: Bonn\nsubmit", "ny", (("t", ""),)),
    Case("labels are exact", ONE, "fill Town: Bonn\nsubmit", "ny", (("t", ""),)),
    Case("labels from elsewhere", ONE, "fill __proto__: x\ncheck constructor\nclick toString\nsubmit", "nnny", (("t", ""),)),
    Case("white space", ONE, "  fill   town :  Bonn  \n\n\t submit ", "yy", (("t", "Bonn"),)),
    Case("broken lines", ONE, "fil town: a\nfill town\n: x\nfill town: b\nchoose\nsubmit", "nnnyny", (("t", "b"),)),
    Case("wrong verb", form_of(SIZE, NEWS), "fill size: L\nfill news: x\nsubmit", "nny", (("s", "s-sent"),)),
    Case("after the end", ONE, "submit\nfill town: Bonn\nsubmit", "ynn", (("t", ""),)),
    Case("clicked", ONE, "click Send", "y", (("t", ""),)),
    Case("no such button", ONE, "click Sent\nsubmit", "ny", (("t", ""),)),
    refused("never submitted", ONE, "fill town: Bonn", "y"),
    refused("empty plan", ONE, "\n \n", ""),
    refused("required", form_of(ASKED, TEXT), "fill town: Bonn\nsubmit\nsubmit", "ynn"),
    Case("required, then given", form_of(ASKED), "submit\nfill name: Ada\nsubmit", "nyy", (("q", "Ada"),)),
    Case("mail", form_of(MAIL), "fill mail: a@b.de\nsubmit", "yy", (("e", "a@b.de"),)),
    refused("no mail", form_of(MAIL), "fill mail: a@b..de\nsubmit", "yn"),
    refused("no mail either", form_of(MAIL), "fill mail: ab\nsubmit", "yn"),
    Case("mail in other signs is not typed", form_of(MAIL), "fill mail: a@bücher.de\nsubmit", "ny", (("e", ""),)),
    Case("number", form_of(NUMBER), "fill age: 42\nsubmit", "yy", (("n", "42"),)),
    Case("number, written otherwise", form_of(NUMBER), "fill age: 4.2e1\nsubmit", "yy", (("n", "4.2e1"),)),
    Case("no number is not typed", form_of(NUMBER), "fill age: 4x\nfill age: 1,5\nfill age: +5\nsubmit", "nnny", (("n", ""),)),
    Case("nor is it cleared", form_of(NUMBER), "fill age: 42\nfill age: many\nsubmit", "yny", (("n", "42"),)),
    refused("too small", form_of(NUMBER), "fill age: 17\nsubmit", "yn"),
    refused("too large", form_of(NUMBER), "fill age: 100\nsubmit", "yn"),
    refused("between steps", form_of(NUMBER), "fill age: 42.5\nsubmit", "yn"),
    Case("hardly between steps", form_of(NUMBER), "fill age: 42.00000001\nsubmit", "yy", (("n", "42.00000001"),)),
    Case("day", form_of(DAY), "fill day: 2026-05-17\nsubmit", "yy", (("d", "2026-05-17"),)),
    Case("day, and a line break", form_of(DAY), "fill day: \ufeff2026-05-17\\n\nsubmit", "yy", (("d", "2026-05-17"),)),
    Case("no day", form_of(DAY), "fill day: 2026-02-29\nsubmit", "ny", (("d", ""),)),
    Case("no day clears", form_of(DAY), "fill day: 2026-05-17\nfill day: 17.05.2026\nsubmit", "yny", (("d", ""),)),
    refused("too early", form_of(DAY), "fill day: 2024-12-31\nsubmit", "yn"),
    refused("too late", form_of(DAY), "fill day: 2028-01-01\nsubmit", "yn"),
    Case("pattern", form_of(CODE), "fill code: 123-AB\nsubmit", "yy", (("k", "123-AB"),)),
    refused("not the pattern", form_of(CODE), "fill code: 123-ABC\nsubmit", "yn"),
    refused("too short", form_of(CODE), "fill code: 12\nsubmit", "yn"),
    Case("chosen", form_of(SIZE), "choose size: L\nsubmit", "yy", (("s", "l-sent"),)),
    Case("the first one otherwise", form_of(SIZE), "submit", "y", (("s", "s-sent"),)),
    Case("what is sent is no label", form_of(SIZE), "choose size: l-sent\nsubmit", "ny", (("s", "s-sent"),)),
    refused("nothing chosen", form_of(MUST_SIZE), "submit", "n"),
    refused("unchosen", form_of(MUST_SIZE), "choose size: M\nchoose size: please choose\nsubmit", "yyn"),
    Case("radio", form_of(PAY), "choose pay: Card\nchoose pay: Cash\nsubmit", "yyy", (("p", "cash-sent"),)),
    Case("no radio", form_of(PAY), "choose pay: Cheque\ncheck Cash\nsubmit", "nny", ()),
    refused("radio required", form_of(Field("pay", "radio", "p", "p-1", "Cash", True, options("Cash", "Card"))), "submit", "n"),
    Case("several", form_of(DAYS), "choose days: Wed\nchoose days: Mon\nsubmit", "yyy", (("m", "mon-sent"), ("m", "wed-sent"))),
    Case(
        "too many for the server", form_of(DAYS), "choose days: Mon\nchoose days: Tue\nchoose days: Wed\nsubmit\nsubmit",
        "yyyyn", (("m", "mon-sent"), ("m", "tue-sent"), ("m", "wed-sent")), False,
    ),
    Case("box", form_of(NEWS), "check news\nsubmit", "yy", (("c", "on"),)),
    Case("box, unticked", form_of(TICKED), "uncheck news\nsubmit", "yy", ()),
    Case("box, clicked", form_of(TICKED), "click news\nclick news\nclick news\nsubmit", "yyyy", ()),
    Case("check what is checked", form_of(TICKED), "check news\ncheck news\nsubmit", "yyy", (("c", "on"),)),
    refused("box required", form_of(RULES), "uncheck rules\nsubmit", "yn"),
    Case("start over", form_of(TEXT, TICKED, SIZE, reset=True),
         "fill town: Bonn\nuncheck news\nchoose size: L\nclick Start over\nsubmit", "yyyyy",
         (("t", ""), ("c", "on"), ("s", "s-sent"))),
    Case("very long", form_of(Field("x", "text", "x", "x", "y")), f"fill x: {'y' * 20_000}\nsubmit", "yy", (("x", "y" * 20_000),)),
    refused("endless", ONE, "fill town: a\n" * 60 + "submit", "y" * 50 + "n" * 11),
    Case("a page that says success", form_of(ASKED, DAYS),
         'fill name: <main data-outcome="success">thank you</main>\nchoose days: Mon\nchoose days: Tue\nchoose days: Wed\nsubmit',
         "yyyyy", (("q", '<main data-outcome="success">thank you</main>'), ("m", "mon-sent"), ("m", "tue-sent"),
                   ("m", "wed-sent")), False),
    *(
        Case(f"everything, {layout}", form_of(TEXT, MAIL, NUMBER, DAY, MUST_SIZE, PAY, DAYS, TICKED, RULES, ABOUT, layout=layout),
             "fill town: Bonn\nfill mail: a@b.de\nfill age: 42\nfill day: 2026-05-17\nchoose size: L\nchoose pay: Cash\n"
             "choose days: Mon\nuncheck news\ncheck rules\nfill about: one\\ntwo\nsubmit", "y" * 11,
             (("t", "Bonn"), ("e", "a@b.de"), ("n", "42"), ("d", "2026-05-17"), ("s", "l-sent"), ("p", "cash-sent"),
              ("m", "mon-sent"), ("r", "on"), ("a", "one\r\ntwo")))
        for layout in ("stack", "wrap", "table")
    ),
)  # fmt: skip


HOSTILE = (
    "", "5", "5.0", "5.", ".5", "-5", "1e2", "1E2", "1e999", "0x10", "١٢", "007", "Infinity", "NaN", "1e-2", "-0", "60.5", "2.5e2",
    "1e-400", "9" * 30, "50.0000001", "50.00000001", "2026-05-17", "2026-02-30", "2026-5-7", "0001-01-01", "275760-09-13",
    "275760-09-14", "0002026-01-01", "02026-01-01", "0000-01-01", "a@b", "a b@c", "A@B.DE", "a@-b", ".a@b", "a@" + "b" * 64,
    "<script>alert(1)</script>", '"><main data-outcome="success">', "&amp;&lt;", "😀" * 9, "👨‍👩‍👧‍👦x", "é́́", "a\\nb\\nc",
    "\\\\n", "\\", "%0d%0a", "a+b=c&d", "مرحبا", "\u202eabc", "\x00a", "a\x07", "a\tb", "a\rb", "\u2028x", "\ufeffx",
    "x" * 3000, "null", "\ud83d", "a\u00a0b", "a\x0bb", "a\x1fb\x85c", "\xad", "İ", "\\n", "\\n\\n", "a\\n", "a\\n\\n",
    "\\na", " \\n", "a\\n ", "7\\n", "2026-05-17\\n", "\u2003 2026-05-17\ufeff", "\u200b2026-05-17", "a@b\\n",
    "L\\n", "a\r", "\r\\n",
)  # fmt: skip
"""Values that browsers, servers and encodings have opinions about."""


@st.composite
def forms(draw: st.DrawFn) -> Form:
    """Any generated form."""
    name = draw(st.sampled_from(list(families.families())))
    return make(name, draw(st.integers(0, 50)), draw(st.sampled_from(GRAMMARS)))


@st.composite
def lines(draw: st.DrawFn, form: Form) -> str:
    """A line that may do something to this form, or not."""
    field = draw(st.sampled_from(form.fields))
    label = draw(st.sampled_from([field.label] * 12 + ["__proto__", "nothing", "<b>x</b>", ""]))
    value = draw(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=20), st.integers(-5, 2000).map(str)))
    chosen = draw(st.sampled_from([option.text for option in field.options] or [value]))
    broken = st.sampled_from(["submit it", "fil x", "choose a", "fill :", "check", ":", "Submit", "\x00"])
    return draw(
        st.one_of(
            st.sampled_from(wording.plan(form).split("\n")),
            st.just(f"fill {label}: {value}"),
            st.just(f"choose {label}: {chosen}"),
            st.sampled_from(["check", "uncheck", "click"]).map(lambda verb: f"{verb} {label}"),
            st.sampled_from(["submit", f"click {form.submit}", "click Start over"]),
            broken,
        )
    )


@st.composite
def filled(draw: st.DrawFn) -> tuple[Form, str]:
    """A form and a plan: the reference plan with a few lines changed, or any lines."""
    form = draw(forms())
    others = draw(st.lists(lines(form), min_size=1, max_size=8))
    if draw(st.integers(0, 3)) == 0:
        return form, "\n".join([*others, "submit"])
    plan = wording.plan(form).split("\n")
    for other in others[:2]:
        place = draw(st.integers(0, len(plan) - 1))
        plan[place : place + draw(st.integers(0, 1))] = [other]
    return form, "\n".join(plan)


def mistaken(name: str, count: int) -> list[tuple[Form, str]]:
    """Forms of a family with plans such as a policy in training writes: the first is right, the others nearly."""
    rng = Random(name)
    found = []
    for number in range(count):
        form = make(name, rng.randrange(10_000), rng.choice(GRAMMARS))
        plan = wording.plan(form)
        for _ in range(number and rng.randint(1, 3)):
            plan = rng.choice((_slip, _slip, _slip, _misplace, _other_value))(rng, plan, form)
        found.append((form, plan))
    return found


def _slip(rng: Random, plan: str, form: Form) -> str:
    """One character is another one, too much or missing."""
    at = rng.randrange(len(plan) + 1)
    return plan[:at] + rng.choice(["", rng.choice("abcdefghij 0123456789:@.-\n\\")]) + plan[at + rng.randint(0, 1) :]


def _misplace(rng: Random, plan: str, form: Form) -> str:
    """A line is missing, or stands somewhere else, or twice."""
    lines = plan.split("\n")
    line = lines.pop(rng.randrange(len(lines)))
    for _ in range(rng.randint(0, 2)):
        lines.insert(rng.randint(0, len(lines)), line)
    return "\n".join(lines)


def _other_value(rng: Random, plan: str, form: Form) -> str:
    """A field gets what is not for it."""
    lines = plan.split("\n")
    at = rng.randrange(len(lines))
    head, colon, _ = lines[at].partition(":")
    values = [text for field in form.fields for text in ([field.value] if isinstance(field.value, str) else [])]
    lines[at] = f"{head}{colon} {rng.choice(values + list(HOSTILE))}" if colon else lines[at]
    return "\n".join(lines)
