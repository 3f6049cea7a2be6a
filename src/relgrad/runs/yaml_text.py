"""YAML as recipes are written: 1e-4 is a number, "7e3" in quotes is text, and what is written can be read back.

YAML 1.1, which the library reads, wants 1.0e-4. Here a number may be written as people write it; whether it is one, its field says
(`settings.by_field`): a commit called 4e51288 is text, with quotes or without.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from relgrad.core.errors import RelgradError
from relgrad.core.settings import Exponent
from relgrad.core.whole_text import half_character

_EXPONENT = "!exponent"
_WRITTEN = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")


class _Loader(yaml.SafeLoader):
    """Reads exponent notation as Exponent; refuses text that no file can hold, a key written twice, and what contains itself."""

    def exponent(self, node: yaml.ScalarNode) -> Exponent | str:
        """Text where no double is so large."""
        number = Exponent(self.construct_scalar(node))
        return number if math.isfinite(number) else number.text

    def words(self, node: yaml.ScalarNode) -> str:
        """Text whose surrogate pairs, the way JSON writes an emoji, are the characters that they stand for."""
        text = str(self.construct_scalar(node)).encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        if wrong := half_character(text):
            raise ConstructorError(None, None, f"{wrong}; write the whole character", node.start_mark)
        return text

    def compose_node(self, parent: Any, index: Any) -> Any:
        node = super().compose_node(parent, index)
        if node is not None and node.end_mark is None:  # an alias (*a) of what is being read at this moment
            raise ConstructorError(None, None, "an alias stands inside of what it stands for", node.start_mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """YAML forbids two equal keys; the library would take the last one."""
        node = super().compose_mapping_node(anchor)
        keys = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                raise ConstructorError(None, None, f"{key.value!r} is written twice", key.start_mark)
            keys.add(key.value if isinstance(key, yaml.ScalarNode) else key)
        return node


class _Dumper(yaml.SafeDumper):
    """Puts quotes around text that looks like exponent notation."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(_EXPONENT, _WRITTEN, list("-+.0123456789"))
_Loader.add_constructor(_EXPONENT, _Loader.exponent)
_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.words)


def read_yaml(text: str, source: str) -> Any:
    """What a YAML text holds. Raises RelgradError, beginning with `source`, for what is not YAML or not whole characters.

    Nor is what looks like something that there is not: a day in month 13, a whole number of thousands of digits.
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RelgradError(f"{source}: not valid YAML: {error}") from None


def write_yaml(data: Any) -> str:
    """Plain data as YAML that `read_yaml`, and every reader of YAML 1.1 or 1.2, reads back as it is."""
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True))
