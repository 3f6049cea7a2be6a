"""Plans in sentences, as FormFactory's agents and the OpenBrowser checkpoints write them; read and written beside plan.py's lines.

    Step 1: Navigate to http://127.0.0.1:5050/legal/nda
    Step 2: Click on the 'Name' input field                   a click that gives the field the focus
    Step 3: Type 'Ada' into the 'Name' field
    Step 4: Click on the 'I agree' checkbox to enable it       or: to disable it
    Step 5: Select 'Red' from the 'Colour' field               of a list of which several may be chosen, one more
    Step 6: Click the Submit button                            or: Click the 'Next' button

`Step N:`, upper and lower case and the kind of quotes do not count. A value may go over several lines and hold quotes: of several
places where it may end, the last counts. Steps are those of plan.py, so one text may even mix both languages.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from relgrad.environments.forms.plan import Plan, Step, Verb, escape, step, whole

_PREFIX = re.compile(r"\s*step\s+\d+\s*[:.)]\s*", re.IGNORECASE)
_QUOTED = r"(?:'(?P<{0}1>.*)'|\"(?P<{0}2>.*)\")"
_VALUE, _LABEL = _QUOTED.format("value"), _QUOTED.format("label")
_WORDS: tuple[tuple[Verb, str], ...] = (
    ("open", r"navigate to (?P<value1>\S+)"),
    ("fill", rf"type {_VALUE} into the {_LABEL}(?: \w+)*"),
    ("choose", rf"select {_VALUE} from the {_LABEL}(?: \w+)*"),
    ("check", rf"click on the {_LABEL} (?:checkbox|field) to enable it"),
    ("uncheck", rf"click on the {_LABEL} (?:checkbox|field) to disable it"),
    ("submit", r"click (?:on )?the '?submit'? button"),
    ("click", rf"click (?:on )?the {_LABEL}(?: \w+)*"),
)
_PATTERNS = tuple((verb, re.compile(words, re.IGNORECASE | re.DOTALL)) for verb, words in _WORDS)
_OPENED = re.compile(r"(?:type|select) ['\"]", re.IGNORECASE)


def parse(text: str) -> Plan:
    """The plan of any text at all, in sentences, in lines, or in both; nothing is an error of the call."""
    return Plan(tuple(_step(sentence) for sentence in _sentences(whole(text))))


def written(steps: Sequence[Step], url: str) -> str:
    """Steps in sentences, one a line, after the one that goes to `url`. Broken steps are left out."""
    sentences = [f"Navigate to {url}"]
    for one in steps:
        match one.verb:
            case "fill":
                sentences += [
                    f"Click on the '{one.label}' input field",
                    f"Type '{one.value}' into the '{one.label}' field",
                ]
            case "choose":
                sentences.append(f"Select '{one.value}' from the '{one.label}' field")
            case "check" | "uncheck":
                change = "enable" if one.verb == "check" else "disable"
                sentences.append(f"Click on the '{one.label}' checkbox to {change} it")
            case "click":
                sentences.append(f"Click the '{one.label}' button")
            case "submit":
                sentences.append("Click the Submit button")
    return "\n".join(f"Step {number}: {sentence}" for number, sentence in enumerate(sentences, 1))


def lines(steps: Sequence[Step]) -> str:
    """The same steps in the lines of plan.py. Broken steps, and those that go to an address, are left out."""
    text = {
        "fill": "fill {0.label}: {value}",
        "choose": "choose {0.label}: {value}",
        "check": "check {0.label}",
        "uncheck": "uncheck {0.label}",
        "click": "click {0.label}",
        "submit": "submit",
    }
    return "\n".join(text[one.verb].format(one, value=escape(one.value)) for one in steps if one.verb in text)


def _sentences(text: str) -> list[str]:
    """One sentence a line; a line that begins no step goes on with a value that is still open."""
    sentences: list[str] = []
    for line in text.split("\n"):
        inside = bool(sentences) and _OPENED.match(sentences[-1]) is not None and _read(sentences[-1]) is None
        if _PREFIX.match(line) or not inside:
            sentences.append(_PREFIX.sub("", line.strip(), count=1))
        else:
            sentences[-1] += f"\n{line.rstrip()}"
    return [sentence for sentence in sentences if sentence.strip()]


def _step(sentence: str) -> Step:
    return _read(sentence) or step(sentence.strip())


def _read(sentence: str) -> Step | None:
    """None for what is no sentence of this language."""
    clean = sentence.strip().removesuffix(".")
    for verb, pattern in _PATTERNS:
        match = pattern.fullmatch(clean)
        if match is not None:
            value, label = (
                next((text for group, text in match.groupdict().items() if group.startswith(part) and text), "")
                for part in ("value", "label")
            )
            return Step(sentence, verb, " ".join(label.split()), value)
    return None
