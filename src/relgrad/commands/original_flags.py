"""Settings written as the originals' command lines have them: `--group_size=16` is the override `group_size=16`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

SETTING = re.compile(r"--([A-Za-z_][\w.]*)=")


def as_overrides(arguments: Sequence[str], options: Iterable[str]) -> list[str]:
    """The arguments of a command, with every `--key=value` that is none of its `options` as `key=value`.

    What looks like one of the options, and is none, stays as it is, so that the command line can say what was meant. So does
    everything after `--`.
    """
    option_names, changed = list(options), list[str]()
    for number, argument in enumerate(arguments):
        if argument == "--":
            return [*changed, *arguments[number:]]
        setting = SETTING.match(argument)
        if setting and not difflib.get_close_matches(f"--{setting[1]}", option_names, 1, cutoff=0.8):
            argument = argument.removeprefix("--")
        changed.append(argument)
    return changed
