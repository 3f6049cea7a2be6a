"""Job files in YAML, for people: a script of several lines stands there line by line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml


class _Readable(yaml.SafeDumper):
    """As SafeDumper, with texts of several lines as blocks."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Readable.add_representer(str, _text)


def as_yaml(data: Mapping[str, Any]) -> str:
    """The text of a YAML file, in the order of the keys."""
    return yaml.dump(dict(data), Dumper=_Readable, sort_keys=False, allow_unicode=True, width=1000)
