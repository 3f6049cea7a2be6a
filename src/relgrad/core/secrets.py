"""Secrets: a recipe names them (`env:NAME`), they are read from the environment where they are used, and are written nowhere.

A string of a recipe's section that reads `env:NAME` stands for the environment variable NAME. The recipe keeps the reference;
`resolved` gives the value and remembers it, and `hide` takes it out of every text that is written or shown. A secret written
out in a recipe is refused by `require_references`. Standard library only.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any
from urllib.parse import quote

from relgrad.core.errors import RelgradError

HIDDEN = "[redacted]"
PREFIX = "env:"
SHORTEST = 6
"""Characters of a value that can be told from ordinary text; shorter ones are not looked for."""

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SECRET_WORDS = frozenset(
    {"apikey", "auth", "authorization", "bearer", "credential", "credentials", "passphrase", "passwd", "password"}
    | {"pwd", "secret", "secrets", "token"}
)
FOLDERS = ("PWD", "OLDPWD")
"""Variables of every shell: the working directory, which is no password."""
KEY_KINDS = {"access", "api", "private", "secret"}
TEXT_WORDS = frozenset(
    {"begin", "bos", "cls", "end", "eos", "fill", "image", "mask", "pad", "sep", "special"}
    | {"start", "stop", "think", "unk"}
)
"""Beside one of these a `token` is a piece of text (`eos_token`), and so is one whose value stands in brackets (`<mask>`)."""
KNOWN_TOKENS = re.compile(r"\b(hf_|sk-|gh[pousr]_|github_pat_|glpat-|xox[abp]-|AKIA)[\w-]{8,}")
URL_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+(?=@)")
LITERAL = re.compile(rf"(?=[\w-]*\d){KNOWN_TOKENS.pattern}|(?<=://)[^/\s@:]*:[^/\s@]+(?=@)")
"""What is a secret whatever its setting is called: a known token, which has a digit, or a password in a URL."""

CREDENTIAL = re.compile(r"(?=.*\d)(?=.*[A-Za-z])[\w.+/=-]{16,}")
"""What a `key` of any kind is a secret by: a long word of letters and digits."""

_values: set[str] = set()
"""What references stood for in this process, as it is and as it is written in code, JSON and addresses."""


# ---------------------------------------------------------------------- references


def is_reference(value: Any) -> bool:
    """Whether a value reads `env:NAME`."""
    return isinstance(value, str) and value.startswith(PREFIX) and NAME.fullmatch(value[len(PREFIX) :]) is not None


def resolved(value: Any, where: str) -> Any:
    """Nested plain data with the values of environment variables in place of references to them.

    Raises RelgradError, beginning with `where`, for a variable that is not set or empty.
    """
    if isinstance(value, Mapping):
        return {key: resolved(inner, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [resolved(inner, f"{where}.{number}") for number, inner in enumerate(value)]
    if not is_reference(value):
        return value
    name = value[len(PREFIX) :]
    content = os.environ.get(name, "")
    if not content:
        state = "is empty" if name in os.environ else "is not set"
        raise RelgradError(f"{where}: {value} names the environment variable {name}, which {state}; export {name}=...")
    if len(content) >= SHORTEST:
        _values.update((content, repr(content)[1:-1], json.dumps(content)[1:-1], quote(content, safe="")))
    return content


def require_references(value: Any, where: str) -> None:
    """Raise RelgradError for a secret that is written out in nested plain data, and for a reference to what is not set."""
    for path, key, text in _texts(value, where):
        if text.startswith(PREFIX) and not is_reference(text) and not re.search(r"\s", text):
            raise RelgradError(f"{path}: {text!r} names no environment variable; a name has letters, digits and _ only")
        if not is_reference(text) and (is_secret(key, text) or LITERAL.search(text)):
            raise RelgradError(
                f"{path}: this looks like a secret, and recipes are kept, shown and passed on. Put it into an environment "
                f"variable and write {PREFIX}NAME, with the variable's name, in its place"
            )
    resolved(value, where)


def references(value: Any) -> list[str]:
    """The names of the environment variables that nested plain data refers to, each once."""
    names = [text[len(PREFIX) :] for _, _, text in _texts(value, "") if is_reference(text)]
    return list(dict.fromkeys(names))


def _texts(value: Any, path: str, key: str = "") -> Iterator[tuple[str, str, str]]:
    """(path, name of the setting, text) of every text in nested plain data. What is inside a secret setting has its name."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _texts(inner, f"{path}.{name}", key if is_secret(key) else str(name))
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            yield from _texts(inner, f"{path}.{number}", key)
    elif isinstance(value, str):
        yield path, key, value


def is_secret(key: str, value: Any = None) -> bool:
    """Whether a key names a secret: "judge.api_key", "--hfToken"; not "micro_batch_tokens", "monkey", or "eos_token".

    With its value, pieces of text (`token: "<think>"`), numbers and switches are told from secrets too, and a `key` that is one.
    """
    words = re.sub(r"([a-z])([A-Z])", r"\1_\2", key).lower().replace("-", "_").replace(".", "_").split("_")
    secret = SECRET_WORDS & set(words)
    if secret == {"token"} and (TEXT_WORDS & set(words) or (isinstance(value, str) and value[:1] in ("<", "["))):
        return False
    if isinstance(value, (bool, int, float)):
        return False
    if "key" in words and isinstance(value, str) and CREDENTIAL.fullmatch(value):
        return True
    return bool(secret) or any(a in KEY_KINDS and b in ("key", "keys") for a, b in pairwise(words))


# ---------------------------------------------------------------------- what is shown


def hide(text: str) -> str:
    """The text without any value that a reference stood for."""
    for value in sorted(_values, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return text


def hide_known(text: str) -> str:
    """The text without any secret this process knows of: references' values, those of variables that name one, known formats."""
    for name, value in os.environ.items():
        if name not in FOLDERS and len(value) >= SHORTEST and is_secret(name, value):
            text = text.replace(value, HIDDEN)
    return hide_patterns(hide(text))


def hide_in(value: Any) -> Any:
    """Nested plain data without any value that a reference stood for; itself where there was none."""
    if not _values:
        return value
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, Mapping):
        return {key: hide_in(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [hide_in(inner) for inner in value]
    return value


def hide_patterns(text: str) -> str:
    """The text without credentials in URLs and tokens of well-known formats."""
    return KNOWN_TOKENS.sub(HIDDEN, URL_CREDENTIALS.sub(HIDDEN, text))


def without_secrets(value: Any, *, references: bool = False) -> Any:
    """Nested plain data (a recipe, say) without the secrets that are written out; with `references`, without `env:NAME` too."""
    if isinstance(value, Mapping):
        return {
            key: HIDDEN
            if inner is not None and is_secret(str(key), inner) and (references or not is_reference(inner))
            else without_secrets(inner, references=references)
            for key, inner in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [without_secrets(inner, references=references) for inner in value]
    return hide_patterns(value) if isinstance(value, str) else value


def command_line(arguments: Sequence[str]) -> list[str]:
    """A command line with secrets replaced: `key=value`, `--key value`, credentials in URLs, known token formats."""
    shown: list[str] = []
    hide_next = False
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if hide_next and not argument.startswith("--"):
            shown.append(HIDDEN)
        elif equals and is_secret(key, value) and not is_reference(value):
            shown.append(f"{key}={HIDDEN}")
        else:
            shown.append(hide_known(argument))
        hide_next = argument.startswith("-") and not equals and is_secret(argument)
    return shown
