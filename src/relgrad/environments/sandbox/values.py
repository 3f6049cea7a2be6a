"""Plain data as JSON, and back. Standard library only: this file runs on both sides of the wall, and builds nothing but data.

JSON's own types stand for themselves; others are an object {"$": its type, "v": its content}, and so is a mapping with a key that
is no text or is "$". Whole numbers of more than 64 bits are written in hexadecimal, which takes linear time.
"""

from __future__ import annotations

from collections.abc import ItemsView, KeysView, ValuesView
from typing import Any

KIND, CONTENT = "$", "v"
WIDEST = 2**63
MANY = 1_000_000
"""Items that an iterator may give."""
HASHED = 10_000
"""Items of a set, and of a mapping whose keys are not all text: numbers can be chosen so that looking them up takes forever."""


def pack(value: Any) -> Any:
    """JSON data of a value. Raises TypeError for what is no data, RecursionError for what contains itself."""
    if value is None or isinstance(value, (bool, str)):
        return value if value is None or isinstance(value, bool) else str.__str__(value)
    if isinstance(value, int):
        number = int(value)
        return number if -WIDEST < number < WIDEST else {KIND: "int", CONTENT: hex(number)}
    if isinstance(value, float):
        return float(value)
    if isinstance(value, list):
        return [pack(item) for item in value]
    if isinstance(value, dict):
        if all(isinstance(key, str) and key != KIND for key in value):
            return {str.__str__(key): pack(item) for key, item in value.items()}
        return {KIND: "dict", CONTENT: [[pack(key), pack(item)] for key, item in value.items()]}
    return _tagged(value)


def _tagged(value: Any) -> dict[str, Any]:
    if isinstance(value, tuple):
        return {KIND: "tuple", CONTENT: [pack(item) for item in value]}
    if isinstance(value, frozenset):
        return {KIND: "frozenset", CONTENT: [pack(item) for item in value]}
    if isinstance(value, set):
        return {KIND: "set", CONTENT: [pack(item) for item in value]}
    if isinstance(value, (bytes, bytearray)):
        return {KIND: "bytes", CONTENT: bytes(value).hex()}
    if isinstance(value, complex):
        return {KIND: "complex", CONTENT: [value.real, value.imag]}
    if isinstance(value, range):
        return {KIND: "range", CONTENT: [pack(end) for end in (value.start, value.stop, value.step)]}
    if isinstance(value, (KeysView, ValuesView, ItemsView)):
        return {KIND: "tuple", CONTENT: [pack(item) for item in value]}
    if hasattr(value, "__next__"):
        return {KIND: "iterator", CONTENT: [pack(item) for item in _first(value)]}
    raise TypeError(f"a value of type {type(value).__name__} is no plain data")


def _first(items: Any) -> list[Any]:
    some: list[Any] = [item for item, _ in zip(items, range(MANY + 1), strict=False)]
    if len(some) > MANY:
        raise TypeError(f"an iterator of more than {MANY:,} items is no plain data")
    return some


def unpack(data: Any) -> Any:
    """The value of JSON data. Raises ValueError for what `pack` does not write."""
    if isinstance(data, list):
        return [unpack(item) for item in data]
    if not isinstance(data, dict):
        return data
    if KIND not in data:
        return {key: unpack(item) for key, item in data.items()}
    if data.keys() != {KIND, CONTENT}:
        raise ValueError(f"tagged data has {sorted(map(str, data))}")
    try:
        return _untagged(data[KIND], data[CONTENT])
    except (TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{data[KIND]!r} cannot hold that: {error}") from None


def _untagged(kind: Any, content: Any) -> Any:
    if kind == "int":
        return int(content, 16)
    if kind == "bytes":
        return bytes.fromhex(content)
    items = unpack(content)
    if not isinstance(items, list):
        raise ValueError(f"{kind!r} holds a list")
    if kind == "complex":
        return complex(*items)
    if kind == "range":
        return range(*items)
    if kind in ("dict", "set", "frozenset") and len(items) > HASHED:
        raise ValueError(f"{kind!r} of more than {HASHED:,} items")
    if kind == "dict":
        return dict(items)
    makers = {"tuple": tuple, "set": set, "frozenset": frozenset, "iterator": iter}
    if kind not in makers:
        raise ValueError(f"no kind of data {kind!r}")
    return makers[kind](items)  # type: ignore[operator]
