"""A checker of the part of JSON Schema that the schema of results.json is written in; any other word is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

KINDS: dict[str, Any] = {
    "object": dict, "array": list, "string": str, "null": type(None), "boolean": bool,
    "integer": int, "number": (int, float),
}  # fmt: skip
KNOWN = {
    *("$schema", "$defs", "$ref", "title", "type", "properties", "required", "additionalProperties", "items"),
    *("anyOf", "allOf", "const", "minimum", "if", "then", "else"),
}


def is_kind(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, KINDS[kind]) or (kind == "integer" and isinstance(value, float) and value.is_integer())


def faults(value: Any, schema: dict[str, Any], root: dict[str, Any], where: str = "$") -> Iterator[str]:
    """Every way in which a value does not fit a schema."""
    assert set(schema) <= KNOWN, set(schema) - KNOWN
    if "$ref" in schema:
        target: Any = root
        for part in schema["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        yield from faults(value, target, root, where)
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(is_kind(value, kind) for kind in kinds):
        yield f"{where} is {value!r}, not {' or '.join(kinds)}"
    if "const" in schema and value != schema["const"]:
        yield f"{where} is {value!r}, not {schema['const']!r}"
    if "minimum" in schema and is_kind(value, "number") and value < schema["minimum"]:
        yield f"{where} is below {schema['minimum']}"
    if "anyOf" in schema:
        each = [list(faults(value, one, root, where)) for one in schema["anyOf"]]
        if all(each):
            yield min(each, key=len)[0]
    for one in schema.get("allOf", ()):
        yield from faults(value, one, root, where)
    if "if" in schema:
        chosen = "else" if list(faults(value, schema["if"], root, where)) else "then"
        yield from faults(value, schema.get(chosen, {}), root, where)
    if isinstance(value, dict):
        yield from (f"{where} has no {name}" for name in schema.get("required", ()) if name not in value)
        named = schema.get("properties", {})
        for name, one in value.items():
            yield from faults(one, named.get(name, schema.get("additionalProperties", {})), root, f"{where}.{name}")
    if isinstance(value, list) and "items" in schema:
        for k, one in enumerate(value):
            yield from faults(one, schema["items"], root, f"{where}[{k}]")


def fits(value: Any, schema: dict[str, Any]) -> list[str]:
    """What does not fit; nothing for a value that does."""
    return list(faults(value, schema, schema))
