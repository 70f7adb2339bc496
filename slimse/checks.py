"""Checking plain values, as TOML and JSON hold them, against the fields of a dataclass."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

_NAMES = {int: "an integer", float: "a finite number", bool: "true or false", str: "text"}


def typed(kind: type, values: object, what: str, prefix: str = "") -> dict[str, Any]:
    """Return ``values`` as arguments of the dataclass ``kind``: lists as tuples, integers as floats, tables as theirs.

    Args:
        kind: a dataclass.
        values: a mapping of plain values.
        what: is read, for messages: "a training recipe".
        prefix: of the keys in messages: "mixing.".

    Raises:
        ValueError: for a key that is no field, or a value of another type; the message names the key, the value and
            what was expected.

    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{prefix.rstrip('.') or what} = {values!r}: expected a table of keys and values")
    hints = get_type_hints(kind)
    known = [field.name for field in fields(kind)]
    unknown = sorted(f"{prefix}{key}" for key in values if key not in known)
    if unknown:
        raise ValueError(f"unknown keys {unknown} in {what}; known: {sorted(known)}")
    return {key: _value(hints[key], value, what, f"{prefix}{key}") for key, value in values.items()}


def _value(hint: Any, value: Any, what: str, key: str) -> Any:
    if hint is Any:
        return value
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _value(next(argument for argument in arguments if argument is not type(None)), value, what, key)
    if is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else hint(**typed(hint, value, what, f"{key}."))
    if origin is tuple or (isinstance(hint, type) and issubclass(hint, tuple)):
        inner = arguments[0] if arguments else float
        if not isinstance(value, list | tuple):
            raise ValueError(f"{key} = {value!r} in {what}: expected a list, each {_NAMES[inner]}")
        return tuple(_value(inner, entry, what, f"{key}[{index}]") for index, entry in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ValueError(f"{key} = {value!r} in {what}: expected a table of keys and values")
        return {name: _value(arguments[1], entry, what, f"{key}.{name}") for name, entry in value.items()}
    plain = (int, float) if hint is float else hint
    good = isinstance(value, plain) and (hint is bool or not isinstance(value, bool))
    if not good or (hint is float and not _finite(value)):
        raise ValueError(f"{key} = {value!r} in {what}: expected {_NAMES[hint]}")
    return float(value) if hint is float else value


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
