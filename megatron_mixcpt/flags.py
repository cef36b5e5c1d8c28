"""Settings as dataclasses: their fields make the flags, the help and the record of a run.

Every tool takes its settings this way::

    @dataclass(frozen=True, kw_only=True)
    class CutSettings:
        '''How texts are cut.'''                          # the title of the flags' group

        length: int = 2048                                # --length N, with "(default: 2048)" in the help
        '''Longest text, in tokens.'''                    # the help
        paths: tuple[str, ...] = setting(default=(), flag="--from", metavar="PATH")

        def __post_init__(self) -> None:                  # the checks, raising ConfigError
            ...

    parser = build_parser("Cut texts.", CutSettings)
    settings = settings_from(parser.parse_args(), CutSettings)
    described(settings)                                   # {"--length": 2048, "--from": []}

A field's type gives the flag's: a ``Literal`` its choices, a ``tuple`` or ``list`` several values, ``bool`` a switch
(with ``--no-...`` where the default is true), a dataclass a group of flags of its own. A field without a default is a
required flag. A ``tuple`` of tuples is a flag that may be repeated, with several values each time.
"""

import argparse
import ast
import dataclasses
import functools
import inspect
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from megatron_mixcpt.errors import ConfigError

_KEY = "megatron_mixcpt.flags"
_NOT_TOLD: Mapping[str, Any] = {
    "flag": None,
    "read": None,
    "prefix": "",
    "is_flag": True,
    "decides": True,
    "options": {},
}


def setting(
    *,
    default: Any = dataclasses.MISSING,
    default_factory: Any = dataclasses.MISSING,
    flag: str | None = None,
    metavar: str | None = None,
    read: Callable[[str, str], Any] | None = None,
    prefix: str = "",
    is_flag: bool = True,
    decides: bool = True,
    **options: Any,
) -> Any:
    """A dataclass field whose flag is not what its name and type say.

    Args:
        default: as in ``dataclasses.field``.
        default_factory: as in ``dataclasses.field``.
        flag: the flag, where it is not the field's name; the field's name itself makes values without a flag, which
            need a default and ``nargs``.
        metavar: what stands for the value in the help.
        read: makes the value of (flag, text); raises ConfigError.
        prefix: of a field that is a dataclass: stands before the names of its flags (``cpt`` gives ``--cpt-filter``).
        is_flag: False for a value that code sets.
        decides: whether the value decides the result; :func:`described` leaves out those that do not.
        options: for ``add_argument``, over everything else.
    """
    if metavar is not None:
        options["metavar"] = metavar
    told = {"flag": flag, "read": read, "prefix": prefix, "is_flag": is_flag, "decides": decides, "options": options}
    return dataclasses.field(default=default, default_factory=default_factory, metadata={_KEY: told})


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all errors of the user's are."""

    def __init__(self, description: str | None = None, **options: Any) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=formatter, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError."""
        raise ConfigError(f"{message} (--help lists every flag)")


def build_parser(description: str | None, *settings_classes: type) -> Parser:
    """The parser of a tool: the flags of the first class stand by themselves, those of each further in a group."""
    parser = Parser(description)
    for number, settings_class in enumerate(settings_classes):
        add_flags(parser, settings_class, grouped=number > 0)
    return parser


def add_flags(
    parser: argparse._ActionsContainer, settings_class: type, *, prefix: str = "", grouped: bool = False
) -> None:
    """Add the flags of a settings class, those of dataclasses in it in groups; changes ``parser``.

    With ``grouped`` the flags of the class itself are a group, too, whose title is the first line of its docstring.
    """
    container = _group(parser, settings_class) if grouped else parser
    items = list(_flags(settings_class, prefix))
    for item in items:
        if item.nested is None and item.is_positional:
            container.add_argument(item.destination, **item.options())
        elif item.nested is None:
            container.add_argument(item.flag, dest=item.destination, **item.options())
    for item in items:
        if item.nested is not None:
            add_flags(parser, item.nested, prefix=item.prefix, grouped=True)


def settings_from[S](arguments: argparse.Namespace | Mapping[str, Any], settings_class: type[S], prefix: str = "") -> S:
    """The settings that parsed flags describe, defaults for what ``arguments`` lacks. Raises what the checks raise."""
    given = vars(arguments) if isinstance(arguments, argparse.Namespace) else arguments
    values: dict[str, Any] = {}
    for item in _flags(settings_class, prefix):
        if item.nested:
            values[item.name] = settings_from(given, item.nested, item.prefix)
        elif item.destination in given:
            value = given[item.destination]
            values[item.name] = tuple(value) if item.is_tuple and value is not None else value
    return settings_class(**values)


def described(settings: Any, prefix: str = "") -> dict[str, Any]:
    """What settings decide, by flag, as plain values: for manifests, and to tell one run from another."""
    found: dict[str, Any] = {}
    for item in _flags(type(settings), prefix):
        value = getattr(settings, item.name)
        if item.nested:
            found |= described(value, item.prefix) if value is not None else {}
        elif item.told["decides"]:
            found[item.flag] = _plain(value)
    return found


def repeated_flags(settings_class: type) -> list[str]:
    """The fields whose flag may be given several times, each adding its values."""
    return [item.name for item in _flags(settings_class) if item.told["options"].get("action") == "extend"]


def flag_name(name: str) -> str:
    """The flag of an argument's name: ``seq_length`` -> ``--seq-length``."""
    return f"--{name.replace('_', '-')}"


def flag_of(settings_class: type, name: str, prefix: str = "") -> str:
    """The flag of a field, as a user types it."""
    return next(item.flag for item in _flags(settings_class, prefix) if item.name == name)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value


def _group(parser: argparse._ActionsContainer, settings_class: type) -> argparse._ActionsContainer:
    title, _, rest = (inspect.getdoc(settings_class) or settings_class.__name__).partition("\n\n")
    return parser.add_argument_group(title.rstrip(".").replace("\n", " "), rest or None)


@dataclasses.dataclass(frozen=True)
class _Flag:
    """A field of a settings class, as a flag."""

    field: dataclasses.Field
    type: Any
    help: str
    outer: str
    """The prefix of the class it stands in."""

    @property
    def name(self) -> str:
        return self.field.name

    @property
    def told(self) -> Mapping[str, Any]:
        """What :func:`setting` was told."""
        return self.field.metadata.get(_KEY, _NOT_TOLD)

    @property
    def flag(self) -> str:
        if self.told["flag"]:
            return self.told["flag"]
        name = f"{self.outer}_{self.name}" if self.outer else self.name
        return flag_name(name)

    @property
    def destination(self) -> str:
        """Its name among parsed arguments."""
        return f"{self.outer}_{self.name}" if self.outer else self.name

    @property
    def prefix(self) -> str:
        """What stands before the flags of a nested class."""
        return "_".join(part for part in (self.outer, self.told["prefix"]) if part)

    @property
    def nested(self) -> type | None:
        return self.type if dataclasses.is_dataclass(self.type) and not self.told["read"] else None

    @property
    def is_positional(self) -> bool:
        """Whether its values stand without a flag before them."""
        return not self.flag.startswith("-")

    @property
    def is_tuple(self) -> bool:
        return typing.get_origin(self.type) is tuple

    def options(self) -> dict[str, Any]:
        """The arguments of ``add_argument`` but for names."""
        options: dict[str, Any] = {"help": self._help()}
        if self.field.default is dataclasses.MISSING and self.field.default_factory is dataclasses.MISSING:
            options["required"] = True
        else:
            options["default"] = self.default()
        return options | self._type_options() | self.told["options"]

    def default(self) -> Any:
        if self.field.default_factory is not dataclasses.MISSING:
            return self.field.default_factory()
        return self.field.default

    def _help(self) -> str:
        default = None if self.field.default is dataclasses.MISSING else self.default()
        shown = default is not None and not isinstance(default, bool) and default not in ((), [], "")
        text = " ".join(self.help.split()).replace("%", "%%")
        if default is True:
            return f"{text} (enabled by default)"
        return f"{text} (default: {_shown(default)})" if shown else text

    def _type_options(self) -> dict[str, Any]:
        kind = self.type
        if kind is bool:
            is_on = self.default() is True
            return {"action": argparse.BooleanOptionalAction if is_on else "store_true"}
        options: dict[str, Any] = {}
        if typing.get_origin(kind) in (tuple, list):
            options["nargs"] = "+"
            kind = typing.get_args(kind)[0]
        if typing.get_origin(kind) is tuple:
            options |= {"action": "append", "default": []}
            kind = typing.get_args(kind)[0]
        if self.told["read"]:
            options["type"] = functools.partial(self.told["read"], self.flag)
        elif typing.get_origin(kind) is typing.Literal:
            choices = typing.get_args(kind)
            options |= {"choices": choices, "type": type(choices[0])}
        else:
            options["type"] = kind
        if kind in (int, float):
            options["metavar"] = "N"
        return options


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value).replace("%", "%%")


def _flags(settings_class: type, prefix: str = "") -> Iterator[_Flag]:
    """The flags of a settings class, in the order of its fields."""
    hints, helps = typing.get_type_hints(settings_class), field_docstrings(settings_class)
    for field in dataclasses.fields(settings_class):
        item = _Flag(field, _without_none(hints[field.name]), helps.get(field.name, ""), prefix)
        if item.told["is_flag"]:
            yield item


def _without_none(hint: Any) -> Any:
    """``X`` of ``X | None``."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
        return kinds[0] if len(kinds) == 1 else str
    return hint


@functools.cache
def field_docstrings(settings_class: type) -> Mapping[str, str]:
    """The text below each field of a dataclass and its bases, by the field's name."""
    found: dict[str, str] = {}
    for ancestor in reversed(settings_class.__mro__):
        if not dataclasses.is_dataclass(ancestor):
            continue
        body = typing.cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(ancestor))).body[0]).body
        for field, text in zip(body, body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            ):
                found[field.target.id] = inspect.cleandoc(text.value.value)
    return found
