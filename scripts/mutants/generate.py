"""Makes one-line mutants of a source file from its syntax tree.

1. Every expression that a rule knows gives one or more replacements: a comparison is flipped, ``+`` becomes ``-``, a
   constant moves by one, ``min`` becomes ``max``, ``not`` and calls such as ``abs`` are dropped, a sum becomes a mean,
   a returned name becomes another one.
2. What no test should notice is left out: docstrings, annotations, error messages, formatted strings and the arguments
   in ``SILENT``.
3. Every replacement keeps to one line of the file, changes its syntax tree and compiles.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

COMPARISONS: dict[type[ast.cmpop], tuple[str, tuple[str, ...]]] = {
    ast.Lt: ("<", ("<=", ">")),
    ast.LtE: ("<=", ("<", ">=")),
    ast.Gt: (">", (">=", "<")),
    ast.GtE: (">=", (">", "<=")),
    ast.Eq: ("==", ("!=",)),
    ast.NotEq: ("!=", ("==",)),
    ast.In: ("in", ("not in",)),
    ast.NotIn: ("not in", ("in",)),
    ast.Is: ("is", ("is not",)),
    ast.IsNot: ("is not", ("is",)),
}
ARITHMETIC: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"),
    ast.Pow: ("**", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
}
SIBLINGS = {
    "min": "max",
    "max": "min",
    "any": "all",
    "all": "any",
    "sum": "mean",
    "mean": "sum",
    "amax": "amin",
    "amin": "amax",
    "argmax": "argmin",
    "argmin": "argmax",
    "floor": "ceil",
    "ceil": "floor",
    "minimum": "maximum",
    "maximum": "minimum",
    "cummax": "cummin",
    "var": "std",
    "std": "var",
}
"""Functions and methods that take the same arguments and give something of the same shape."""
DROPPED = {
    "abs",
    "clamp",
    "sqrt",
    "square",
    "log",
    "exp",
    "round",
    "sorted",
    "reversed",
    "relu",
    "sigmoid",
    "softmax",
    "log_softmax",
    "flip",
}
DROPPED_METHODS = DROPPED | {"cumsum", "T", "mT", "conj", "clip"}
SILENT = {"strict", "device", "dtype", "stacklevel", "indent", "encoding", "exist_ok", "parents", "frozen", "slots"}
"""Keyword arguments whose value does not change a number."""
UNTOUCHED = (ast.JoinedStr, ast.Raise, ast.Import, ast.ImportFrom, ast.Assert, ast.Global, ast.Nonlocal)
"""Nodes that no mutant is made in; an assertion is for the type checker here."""


@dataclass(frozen=True)
class Mutant:
    """One changed line of ``file``, a path below lib/mechint; ``line`` counts from 1."""

    file: str
    line: int
    before: str
    after: str
    statement: tuple[int, int]
    """First and last line of the statement: a test that runs one of them runs the mutant. (0, 0) outside functions."""

    def apply(self, text: str) -> str:
        """The text of the file with the line changed."""
        lines = text.split("\n")
        assert lines[self.line - 1] == self.before, f"{self.file}:{self.line} is not the line that was mutated"
        lines[self.line - 1] = self.after
        return "\n".join(lines)

    @property
    def key(self) -> tuple[str, str, str]:
        """What a list of equivalent mutants calls it; where the line stands does not matter."""
        return self.file, self.before.strip(), self.after.strip()


def sample(path: Path, file: str, count: int | None, seed: int) -> list[Mutant]:
    """That many of the mutants of a file, chosen at random, or all; in the order of their lines."""
    text, every = path.read_text(), mutants(path, file)
    plain = ast.dump(ast.parse(text))
    random.Random(f"{seed} {file}").shuffle(every)
    valid = (mutant for mutant in every if differs(mutant.apply(text), plain))
    return sorted(islice(valid, count), key=lambda mutant: (mutant.line, mutant.after))


def mutants(path: Path, file: str) -> list[Mutant]:
    """Every mutant of a file in the order of its lines, none twice; some of them may not compile."""
    text = path.read_text()
    tree, lines = ast.parse(text), text.split("\n")
    found: dict[tuple[int, str], Mutant] = {}
    for replacements, statement in replaceable(tree):
        for (line, start, end), new in replacements:
            row = lines[line - 1].encode()
            after = (row[:start] + spell(row[start:end].decode(), new).encode() + row[end:]).decode()
            if after != lines[line - 1]:
                found[line, after] = Mutant(file, line, lines[line - 1], after, statement)
    return sorted(found.values(), key=lambda mutant: (mutant.line, mutant.after))


def differs(text: str, plain: str) -> bool:
    """True if the text compiles to another syntax tree."""
    try:
        return ast.dump(ast.parse(text)) != plain
    except SyntaxError:
        return False


Span = tuple[int, int, int]
"""A line from 1, and the first and last byte in it."""
Found = tuple[list[tuple[Span, str]], tuple[int, int]]
"""The replacements of a node, and the lines of its statement."""


def replaceable(tree: ast.Module) -> Iterator[Found]:
    """The replacements of every node that has some."""
    silent = {id(default) for node in ast.walk(tree) if isinstance(node, ast.arguments) for default in seeds(node)}

    def walk(
        node: ast.AST, statement: tuple[int, int], names: tuple[str, ...], inside: bool, nested: bool = False
    ) -> Iterator[Found]:
        if isinstance(node, UNTOUCHED) or is_docstring(node) or is_declared(node) or id(node) in silent:
            return
        if isinstance(node, ast.arguments) and not nested:
            statement = (0, 0)  # the import of the file evaluates defaults, and every test of it meets them
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            nested, inside = inside, True
            names = tuple(dict.fromkeys(n.arg for n in ast.walk(node.args) if isinstance(n, ast.arg))) + locals_of(node)
        if isinstance(node, ast.stmt):
            statement = header(node) if inside else (0, 0)
        if replacements := [*replace(node, names)]:
            yield replacements, statement
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "type_comment"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.keyword) and (child.arg in SILENT or asks_nothing(child)):
                    continue
                if isinstance(child, ast.AST):
                    yield from walk(child, statement, names, inside, nested or isinstance(node, ast.Lambda))

    return walk(tree, (0, 0), (), False)


def seeds(arguments: ast.arguments) -> list[ast.expr]:
    """The defaults of arguments named ``seed``: another draws other samples, and no result is more right."""
    named = [*arguments.posonlyargs, *arguments.args][::-1]
    pairs = [
        *zip(named, arguments.defaults[::-1], strict=False),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    return [default for argument, default in pairs if argument.arg == "seed" and default is not None]


def is_declared(node: ast.AST) -> bool:
    """True of a call that declares an option of a menu: its range and default are choices."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "option"


def asks_nothing(node: ast.keyword) -> bool:
    """True of ``logits_at=positions[:, :0]``: with more positions, logits are computed that nobody reads."""
    return node.arg == "logits_at" and ast.unparse(node.value).endswith(":0]")


def is_docstring(node: ast.AST) -> bool:
    """True of a string that stands alone."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def header(node: ast.stmt) -> tuple[int, int]:
    """The lines of a statement without those of the statements in it."""
    body = getattr(node, "body", None)
    last = body[0].lineno - 1 if isinstance(body, list) and body else node.end_lineno or node.lineno
    return node.lineno, max(node.lineno, last)


def locals_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[str, ...]:
    """The names that a function assigns."""
    return tuple(
        dict.fromkeys(n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
    )


def replace(node: ast.AST, names: tuple[str, ...]) -> Iterator[tuple[Span, str]]:
    """The replacements of one node: a part of a line, and what stands there instead."""
    if isinstance(node, ast.Compare):
        left: ast.expr = node.left
        for op, right in zip(node.ops, node.comparators, strict=True):
            old, others = COMPARISONS[type(op)]
            yield from between(left, right, old, others)
            left = right
    elif isinstance(node, ast.BoolOp):
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for first, second in zip(node.values, node.values[1:], strict=False):
            yield from between(first, second, old, (new,))
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC and not has_text(node):
        old, new = ARITHMETIC[type(node.op)]
        yield from between(node.left, node.right, old, (new,))
    elif isinstance(node, ast.AugAssign) and type(node.op) in ARITHMETIC:
        old, new = ARITHMETIC[type(node.op)]
        yield from between(node.target, node.value, old + "=", (new + "=",))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub, ast.Invert)):
        yield from whole(node, f"({ast.unparse(node.operand)})")
    elif isinstance(node, ast.Constant):
        yield from constants(node)
    elif isinstance(node, ast.Call):
        yield from calls(node)
    elif isinstance(node, (ast.If, ast.IfExp, ast.While)) and not isinstance(node.test, (ast.Compare, ast.UnaryOp)):
        yield from whole(node.test, f"(not ({ast.unparse(node.test)}))")
    elif isinstance(node, ast.comprehension):
        for test in node.ifs:
            yield from whole(test, "True")
    elif isinstance(node, ast.Return):
        yield from returns(node, names)


def constants(node: ast.Constant) -> Iterator[tuple[Span, str]]:
    value = node.value
    if isinstance(value, bool):
        yield from whole(node, str(not value))
    elif isinstance(value, int):
        yield from whole(node, str(value + 1))
    elif isinstance(value, float):
        yield from whole(node, repr(value * 2 if value else 1.0))


def calls(node: ast.Call) -> Iterator[tuple[Span, str]]:
    """A function becomes its sibling, or is dropped."""
    function = node.func
    if isinstance(function, ast.Name):
        if function.id in SIBLINGS and function.id not in ("sum", "mean"):
            yield from whole(function, SIBLINGS[function.id])
        if function.id in DROPPED and node.args:
            yield from whole(node, f"({ast.unparse(node.args[0])})")
    elif isinstance(function, ast.Attribute):
        line, _, end = span(function) or (0, 0, 0)
        if function.attr in SIBLINGS and line:
            yield (line, end - len(function.attr.encode()), end), SIBLINGS[function.attr]
        module = isinstance(function.value, ast.Name) and function.value.id in ("torch", "np", "math", "F", "stats")
        if module and function.attr in DROPPED and node.args:
            yield from whole(node, f"({ast.unparse(node.args[0])})")
        elif not module and function.attr in DROPPED_METHODS:
            yield from whole(node, f"({ast.unparse(function.value)})")


def returns(node: ast.Return, names: tuple[str, ...]) -> Iterator[tuple[Span, str]]:
    """Another name of the function is returned, or the first two of several values change places."""
    if isinstance(node.value, ast.Name):
        others = [name for name in names if name not in (node.value.id, "self", "cls", "_")]
        yield from (found for name in others[-1:] for found in whole(node.value, name))
    elif isinstance(node.value, ast.Tuple) and len(node.value.elts) > 1:
        first, second, *rest = map(ast.unparse, node.value.elts)
        yield from whole(node.value, ", ".join([second, first, *rest]))


def has_text(node: ast.BinOp) -> bool:
    """True if a side is a string: joined text is not arithmetic."""
    parts = [part for side in (node.left, node.right) for part in ast.walk(side)]
    return any(
        isinstance(p, ast.JoinedStr) or (isinstance(p, ast.Constant) and isinstance(p.value, str)) for p in parts
    )


def span(node: ast.expr | ast.expr_context) -> Span | None:
    """Where an expression stands, where that is one line."""
    if not isinstance(node, ast.expr) or node.end_lineno != node.lineno or node.end_col_offset is None:
        return None
    return node.lineno, node.col_offset, node.end_col_offset


def whole(node: ast.expr, new: str) -> Iterator[tuple[Span, str]]:
    if found := span(node):
        yield found, new


def between(left: ast.expr, right: ast.expr, old: str, new: tuple[str, ...]) -> Iterator[tuple[Span, str]]:
    """The operator between two expressions, where both ends stand on its line.

    Parentheses and spaces may stand there, too: the operator is the only other text.
    """
    if left.end_lineno != right.lineno or left.end_col_offset is None:
        return
    start, end = left.end_col_offset, right.col_offset
    yield from (((left.lineno, start, end), f"\0{old}\0{other}") for other in new)


def spell(segment: str, new: str) -> str:
    """A replacement of :func:`between` in the text that stands there."""
    if not new.startswith("\0"):
        return new
    _, old, other = new.split("\0")
    return re.sub(re.escape(old), lambda _: other, segment, count=1)
