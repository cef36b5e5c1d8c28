"""A small, safe language to choose records: ``--cpt-filter "meta.score >= 0.7 and lang in ('en', 'fr')"``.

=======================  ================================================================================
field names              ``score``, ``meta.score``; ``field('odd name')`` for one that is no plain name
constants                numbers, strings in quotes, ``true``, ``false``, ``null``, lists ``('en', 'fr')``
comparisons              ``==  !=  <  <=  >  >=  in  not in``, also chained: ``0.2 < score <= 0.9``
logic                    ``and  or  not``, with brackets
functions                ``len(x)``, ``lower(x)``, ``startswith(x, 'a')``, ``endswith(x, 'a')``, ``number(x)``
=======================  ================================================================================

A missing field is null. Ordering null, or things of different types, is false rather than an error, so that a record
without a score is filtered out by ``score >= 0.7``. Python's parser reads the expression and a walk over its tree
evaluates it; nothing is ever given to ``eval``.
"""

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from megatron_mixcpt.data.reading.field_names import lookup
from megatron_mixcpt.errors import ConfigError

CONSTANTS = {"true": True, "false": False, "null": None}


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "len": lambda value: len(value) if hasattr(value, "__len__") else None,
    "lower": lambda value: value.lower() if isinstance(value, str) else None,
    "startswith": lambda value, start: isinstance(value, str) and value.startswith(str(start)),
    "endswith": lambda value, end: isinstance(value, str) and value.endswith(str(end)),
    "number": _number,
}
NUM_ARGUMENTS = {"len": 1, "lower": 1, "startswith": 2, "endswith": 2, "number": 1}
COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda item, container: item in container,
    ast.NotIn: lambda item, container: item not in container,
}

Row = Mapping[str, Any]


def _constant(value: Any) -> Callable[[Row], Any]:
    return lambda row: value


class RowFilter:
    """A condition on a row. ``fields`` are the names it reads, so that a table's other columns need not be."""

    def __init__(self, expression: str, flag: str):
        """Raises ConfigError, naming ``flag``, where the expression is not of the language."""
        self.fields: set[str] = set()
        self._where = f"{flag} {expression!r}"
        try:
            tree = ast.parse(expression.strip(), mode="eval")
            self._value = self._compile(tree.body)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ConfigError(f"{self._where}: not an expression; for example meta.score >= 0.7") from error

    def __call__(self, row: Row) -> bool:
        """Whether the row fulfils the condition."""
        return bool(self._value(row))

    def _compile(self, node: ast.expr) -> Callable[[Row], Any]:
        match node:
            case ast.Constant(value=bool() | int() | float() | str()):
                return _constant(node.value)
            case ast.Tuple(elts=items) | ast.List(elts=items):
                values = [self._compile(item) for item in items]
                return lambda row: [value(row) for value in values]
            case ast.Name() | ast.Attribute():
                return self._field(self._dotted(node))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                inner = self._compile(operand)
                return lambda row: not inner(row)
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
                return lambda row: -value
            case ast.BoolOp(op=op, values=parts):
                every = all if isinstance(op, ast.And) else any
                inners = [self._compile(part) for part in parts]
                return lambda row: every(inner(row) for inner in inners)
            case ast.Compare():
                return self._comparison(node)
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
                return self._call(name, arguments)
        raise ConfigError(
            f"{self._where}: {ast.unparse(node)!r} is not in the filter language; see docs/how-to/prepare-data.md"
        )

    def _dotted(self, node: ast.expr) -> str:
        if isinstance(node, ast.Name):
            return node.id
        if isinstance(node, ast.Attribute):
            return f"{self._dotted(node.value)}.{node.attr}"
        raise ConfigError(f"{self._where}: {ast.unparse(node)!r} is not a field name")

    def _field(self, name: str) -> Callable[[Row], Any]:
        if name in CONSTANTS:
            return lambda row: CONSTANTS[name]
        self.fields.add(name)
        return lambda row: lookup(row, name)

    def _comparison(self, node: ast.Compare) -> Callable[[Row], bool]:
        values = [self._compile(part) for part in (node.left, *node.comparators)]
        operators = [COMPARISONS[type(op)] for op in node.ops if type(op) in COMPARISONS]
        if len(operators) < len(node.ops):
            raise ConfigError(
                f"{self._where}: {ast.unparse(node)!r} has a comparison that is not of the filter language"
            )

        def compare(row: Row) -> bool:
            found = [value(row) for value in values]
            try:
                return all(op(left, right) for op, left, right in zip(operators, found, found[1:], strict=False))
            except TypeError:
                return False

        return compare

    def _call(self, name: str, arguments: list[ast.expr]) -> Callable[[Row], Any]:
        if name == "field" and len(arguments) == 1 and isinstance(arguments[0], ast.Constant):
            return self._field(str(arguments[0].value))
        if NUM_ARGUMENTS.get(name) != len(arguments):
            known = ", ".join(f"{known}({', '.join('xy'[:num])})" for known, num in NUM_ARGUMENTS.items())
            raise ConfigError(f"{self._where}: no function {name} of {len(arguments)} argument(s); there are {known}")
        function, values = FUNCTIONS[name], [self._compile(argument) for argument in arguments]
        return lambda row: function(*(value(row) for value in values))
