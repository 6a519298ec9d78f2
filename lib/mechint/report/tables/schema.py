"""The JSON schema of results.json, made from the dataclasses that write and read it.

It holds the header to its types, every number, wherever it lies, to value, interval and n, and the entries of an
analysis to the dataclass that it declares. Where it declares none, the names of its entries are left open.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from typing import Any

from ...utils.statistics import Number
from ..finished import SCHEMA
from ..results import NUMBER, Header

Json = dict[str, Any]
PLAIN: dict[Any, Json] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
}


def schema(analyses: Mapping[str, type] = types.MappingProxyType({})) -> Json:
    """Returns the schema of results.json (JSON Schema, draft 2020-12).

    Args:
        analyses: The dataclass of an analysis's entries, by the file's entry ``report``.
    """
    header = of_class(Header)
    known: Json = {
        **header["properties"],
        "schema": {"const": SCHEMA},
        "status": {"const": "complete"},
        "report": {"type": "string"},
        "metrics": {"type": "object", "additionalProperties": {"$ref": "#/$defs/number"}},
        "notes": {"type": "array", "items": {"type": "string"}},
        "few": {"type": "array", "items": {"type": "string"}},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "results.json of mechint",
        "type": "object",
        "properties": known,
        "required": [*header["required"], "metrics"],
        "additionalProperties": {"$ref": "#/$defs/entry"},
        "allOf": [of_analysis(kind, made) for kind, made in analyses.items()],
        "$defs": {"number": number(), "grid": grid(), "entry": entry()},
    }


def of_analysis(kind: str, made: type) -> Json:
    """The entries of runs of one kind; those that all kinds share are said once, above."""
    shared = ("metrics", "notes", "few")
    found = of_class(made)
    found["properties"] = {name: said for name, said in found["properties"].items() if name not in shared}
    found["required"] = [name for name in found["required"] if name not in shared]
    return {"if": {"properties": {"report": {"const": kind}}, "required": ["report"]}, "then": found}


def of_class(made: type) -> Json:
    """The object that a dataclass is written as; fields that may be None may be left out."""
    hints = typing.get_type_hints(made)
    fields = {field.name: of_type(hints[field.name]) for field in dataclasses.fields(made)}
    required = [name for name in fields if type(None) not in typing.get_args(hints[name])]
    return {"type": "object", "properties": fields, "required": required}


def of_type(hint: Any) -> Json:
    """The schema of a type of a field."""
    if hint in PLAIN:
        return dict(PLAIN[hint])
    if hint is Any:
        return {}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return of_class(hint)
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return {"anyOf": [of_type(each) for each in inside]}
    if hint == Number:
        return {"$ref": "#/$defs/number"}
    if origin in (Mapping, dict):
        return {"type": "object", "additionalProperties": of_type(inside[1])}
    if origin is list:
        return {"type": "array", "items": of_type(inside[0])}
    raise TypeError(f"no schema is known for {hint!r}; say it in {__name__}")


def number() -> Json:
    """A number with its interval, as :func:`mechint.report.values.read_value` reads it."""
    end = {"type": ["number", "null"]}
    parts = {"value": {"type": "number"}, "low": end, "high": end, "n": {"type": "integer", "minimum": 0}}
    return {
        "type": "object",
        "properties": {**parts, "interval": {"type": "string"}, "p": end},
        "required": list(NUMBER),
    }


def grid() -> Json:
    """Many numbers as one object of lists, with null for cells without a value; a part that all share is one number."""
    cells = {"anyOf": [{"type": ["number", "null"]}, {"type": "array", "items": {"$ref": "#/$defs/grid/$defs/cells"}}]}
    return {
        "type": "object",
        "properties": {name: {"$ref": "#/$defs/grid/$defs/cells"} for name in NUMBER},
        "required": list(NUMBER),
        "$defs": {"cells": cells},
    }


def entry() -> Json:
    """Anything that an analysis adds: where it has the parts of a number, it is a number or a grid."""
    return {
        "if": {"type": "object", "required": list(NUMBER)},
        "then": {"anyOf": [{"$ref": "#/$defs/number"}, {"$ref": "#/$defs/grid"}]},
        "else": {"items": {"$ref": "#/$defs/entry"}, "additionalProperties": {"$ref": "#/$defs/entry"}},
    }


def text(analyses: Mapping[str, type] = types.MappingProxyType({})) -> str:
    """The schema as the text of a file."""
    return json.dumps(schema(analyses), indent=2) + "\n"
