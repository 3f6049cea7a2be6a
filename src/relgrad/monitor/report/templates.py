"""The templates of the pages, each compiled once in a process."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Template


@functools.cache
def template(name: str, number: Callable[..., str] | None = None) -> Template:
    """A template of this folder, with `number` as its filter for figures. Every value is escaped; an unknown name is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("relgrad.monitor.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    if number is not None:
        environment.filters["number"] = number
    return environment.get_template(name)
