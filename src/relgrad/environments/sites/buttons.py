"""Which button submits."""

from __future__ import annotations

from collections import Counter

from relgrad.environments.sites.controls import Button, Offer
from relgrad.environments.sites.finding import NotFound, plain

WORDS = (
    "submit",
    "send",
    "apply",
    "register",
    "sign up",
    "save",
    "order",
    "book",
    "request",
    "confirm",
    "continue",
    "done",
    "finish",
)


def submit_button(offer: Offer, form: int | None) -> Button:
    """Of the form that is filled in, or else of the one with most controls: its first button that submits, or else the first whose
    text begins with one of WORDS. Raises NotFound.
    """
    sizes = Counter(control.form for control in offer.controls if not control.state)
    form_number = form if form is not None else sizes.most_common(1)[0][0] if sizes else -1
    usable = [button for button in offer.buttons if not button.state]
    worded = [button for button in usable if plain(button.text).startswith(WORDS) and button.kind != "reset"]
    for buttons in (
        [button for button in usable if button.kind == "submit" and button.form == form_number >= 0],
        [button for button in worded if button.form == form_number],
        worded,
        [button for button in usable if button.kind == "submit"],
    ):
        if buttons:
            return buttons[0]
    raise NotFound("no button of the page submits")
