"""A settings dataclass makes its flags, its help and its record; a wrong command line is one line."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from megatron_mixcpt.errors import ConfigError
from megatron_mixcpt.flags import build_parser, described, field_docstrings, flag_of, setting, settings_from


def read_share(flag: str, text: str) -> float:
    """``1%`` is 0.01."""
    if not text.endswith("%"):
        raise ConfigError(f"{flag} {text}: expected a share such as 1%")
    return float(text[:-1]) / 100


@dataclass(frozen=True, kw_only=True)
class PartSettings:
    """How parts are cut."""

    size: int = 8
    """Of a part, in tokens."""


@dataclass(frozen=True, kw_only=True)
class BaseSettings:
    """What all share."""

    output: Path = setting(metavar="DIR", decides=False)
    """Folder to write."""


@dataclass(frozen=True, kw_only=True)
class ToolSettings(BaseSettings):
    """A tool."""

    folders: tuple[Path, ...] = setting(default=(), flag="folders", nargs="*", metavar="FOLDER")
    """Folders to search."""
    paths: tuple[str, ...] = setting(default=(), flag="--from", metavar="PATH")
    """Files to read."""
    kind: Literal["a", "b"] = "a"
    """Of what."""
    share: float = setting(default=1.0, read=read_share, metavar="SHARE")
    """How much to keep, such as 5%."""
    limit: int | None = None
    """At most so many. Default: all."""
    quick: bool = False
    packing: bool = True
    """Lay samples into rows."""
    number_of_runs: int = setting(default=3, is_flag=False)
    first: PartSettings = setting(default_factory=PartSettings, prefix="first")
    second: PartSettings = setting(default_factory=PartSettings, prefix="second")

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"--limit {self.limit}: must be greater than 0")


def parsed(*argv: str) -> ToolSettings:
    return settings_from(build_parser("A tool.", ToolSettings).parse_args(argv), ToolSettings)


def test_values_of_every_type() -> None:
    argv = "a b --output out --from x y --kind b --share 5% --limit 2 --quick --no-packing --second-size 3".split()
    assert parsed(*argv) == ToolSettings(
        output=Path("out"),
        folders=(Path("a"), Path("b")),
        paths=("x", "y"),
        kind="b",
        share=0.05,
        limit=2,
        quick=True,
        packing=False,
        second=PartSettings(size=3),
    )
    assert parsed("--output", "out") == ToolSettings(output=Path("out"))


def test_the_record_is_of_what_decides() -> None:
    assert described(parsed("--output", "out", "--from", "x")) == {
        "folders": [],
        "--from": ["x"],
        "--kind": "a",
        "--share": 1.0,
        "--limit": None,
        "--quick": False,
        "--packing": True,
        "--first-size": 8,
        "--second-size": 8,
    }


def test_the_help_is_the_fields_docstrings() -> None:
    text = " ".join(build_parser("A tool.", ToolSettings).format_help().split())
    assert "--from PATH [PATH ...] Files to read." in text
    assert "FOLDER Folders to search." in text
    assert "How much to keep, such as 5%. (default: 1.0)" in text
    assert "At most so many. Default: all." in text
    assert "How parts are cut: --first-size N Of a part, in tokens. (default: 8)" in text
    assert "number-of-runs" not in text
    assert "--packing, --no-packing Lay samples into rows. (enabled by default)" in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--output", "x", "--kind", "c"], "argument --kind: invalid choice: 'c'"),
        (["--output", "x", "--limit", "many"], "argument --limit: invalid int value: 'many'"),
        (["--output", "x", "--limit", "0"], "--limit 0: must be greater than 0"),
        (["--output", "x", "--share", "half"], "--share half: expected a share such as 1%"),
        (["--outpu", "x"], "the following arguments are required: --output"),
        (["--output", "x", "--second", "1"], "unrecognized arguments: --second"),
    ],
)
def test_a_wrong_command_line_is_one_line(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parsed(*argv)
    assert "\n" not in str(caught.value)


def test_names() -> None:
    assert flag_of(ToolSettings, "paths") == "--from"
    assert flag_of(PartSettings, "size", prefix="first") == "--first-size"


def test_docstrings_of_bases_and_functions_are_told_apart() -> None:
    @dataclass(frozen=True)
    class Settings(PartSettings):
        """Local."""

        paths: list[str] = field(default_factory=list)
        """Files."""

        def method(self) -> None:
            """Of a method."""

    assert dict(field_docstrings(Settings)) == {"size": "Of a part, in tokens.", "paths": "Files."}
