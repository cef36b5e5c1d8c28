"""Write docs/reference/flags.md from the parsers of all tools, engine-flags.md from the trainers' flag table, and
families.md from the registry of families and what was measured of them.

python docs/generate_reference.py            # writes the pages
python docs/generate_reference.py --check    # exits with 1 where a page is not what the parsers say
"""

import argparse
import ast
import html
import importlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from megatron_mixcpt import cpu_emulation

os.environ["MIXCPT_DEVICE"] = "cpu"  # the page is the same on every machine
cpu_emulation.install()  # before Megatron is imported

from families_page import families_page  # noqa: E402  # beside this file

from megatron_mixcpt import flags  # noqa: E402
from megatron_mixcpt.config import DPOConfig, MixCPTConfig, SFTConfig  # noqa: E402
from megatron_mixcpt.data.reading.record_flags import add_record_flags  # noqa: E402
from megatron_mixcpt.training.alignment import arguments as alignment  # noqa: E402
from megatron_mixcpt.training.engine import arguments as engine  # noqa: E402
from megatron_mixcpt.training.engine.decided_flags import DECIDED_IN_ALIGNMENT, DECIDED_IN_PRETRAINING  # noqa: E402
from megatron_mixcpt.training.engine.flag_table import (  # noqa: E402
    OF_THE_MODEL,
    SERVED,
    flag_of,  # noqa: E402
)
from megatron_mixcpt.training.engine.harmless_flags import HARMLESS_ENGINE_ARGUMENTS  # noqa: E402
from megatron_mixcpt.training.engine.refused_flags import REFUSED, REFUSED_VALUES  # noqa: E402
from megatron_mixcpt.training.pretraining import arguments as pretraining  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/reference/flags.md"
ENGINE_PAGE = ROOT / "docs/reference/engine-flags.md"
FAMILIES_PAGE = ROOT / "docs/reference/families.md"

# Tool -> the module of its parser, or the settings of a trainer, whose parser is the engine's with these flags added.
TOOLS: Mapping[str, str | type] = {
    "preprocess_mixture.py": "megatron_mixcpt.data.preprocessing.tool",
    "pretrain_mixcpt.py": MixCPTConfig,
    "plan.py": "megatron_mixcpt.planning.tool",
    "score_alignment.py": "megatron_mixcpt.selection.score_tool",
    "select_alignment.py": "megatron_mixcpt.selection.select_tool",
    "train_sft.py": SFTConfig,
    "train_dpo.py": DPOConfig,
    "convert_from_hf.py": "megatron_mixcpt.conversion.from_hf_tool",
    "convert_to_hf.py": "megatron_mixcpt.conversion.to_hf_tool",
    "verify_conversion.py": "megatron_mixcpt.verification.tool",
    "evaluate.py": "megatron_mixcpt.evaluation.tool",
    "report.py": "megatron_mixcpt.report.tool",
}

HEAD = """# Flags

<!-- Written by docs/generate_reference.py from the parsers: change the flags' help, then run it. -->

Every tool prints its flags with `--help`. The trainers (`pretrain_mixcpt.py`, `train_sft.py`, `train_dpo.py`) accept
every flag of Megatron as well, each of which holds or is refused in one line: [Megatron's flags](engine-flags.md).
"""
ENGINE_HEAD = """# Megatron's flags

<!-- Written by docs/generate_reference.py from the parsers: change the tables in megatron_mixcpt/training/engine. -->

The trainers (`pretrain_mixcpt.py`, `train_sft.py`, `train_dpo.py`) accept every flag of Megatron. Each is in one of
these classes, and the trainers go by the same tables: a flag that holds does what Megatron documents; a flag that would
not is refused in one line with the reason. A flag that a newer Megatron brings is refused until it is in a table.
`python -m megatron_mixcpt.training.engine.flag_table` prints one line for each flag.
"""

# Values that depend on the machine or the model.
DESCRIBED = {
    "transformer_impl": "`transformer_engine` where Transformer Engine is installed, otherwise `local`",
    "null_tokenizer_eod_id": "the tokenizer's end of sequence",
}


def page() -> str:
    """The page."""
    parts = [HEAD]
    for tool, source in TOOLS.items():
        parser = _trainers_parser(source) if isinstance(source, type) else _parser_of(source)
        parts += [f"## {tool}\n", _purpose(parser, tool), *_tables(parser)]
    return "\n".join(parts).rstrip() + "\n"


def _trainers_parser(settings: type) -> argparse.ArgumentParser:
    parser = flags.build_parser(None, settings)
    if kind := getattr(settings, "kind", None):
        add_record_flags(parser, kind)
    return parser


def engine_page() -> str:
    """The page of the engine's flags."""
    return "\n".join([ENGINE_HEAD, *_engine_tables()]).rstrip() + "\n"


def _parser_of(module: str) -> argparse.ArgumentParser:
    return importlib.import_module(module).build_parser()


def _purpose(parser: argparse.ArgumentParser, tool: str) -> str:
    """The first paragraph of what the parser says of the tool; for a trainer, of the tool's docstring."""
    text = parser.description or ast.get_docstring(ast.parse((ROOT / "tools" / tool).read_text(encoding="utf-8"))) or ""
    first = re.sub(r"^(``)?tools/\w+\.py(``)?: ", "", text.strip().partition("\n\n")[0])
    return _prose(first[:1].upper() + first[1:]) + "\n"


def _tables(parser: argparse.ArgumentParser) -> Iterator[str]:
    """One table for each group of flags."""
    formatter = argparse.HelpFormatter("")
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.dest != "help"]
        if not actions:
            continue
        if group.title not in ("options", "positional arguments"):
            yield f"**{_prose(group.title or '')}**\n"
        yield "| flag | |\n|---|---|"
        for action in actions:
            help_text = formatter._expand_help(action) if action.help else ""
            required = "**Required.** " if action.required and action.option_strings else ""
            yield f"| {_names(formatter, action)} | {required}{_prose(help_text.removeprefix('Required. '))} |"
        yield ""


def _names(formatter: argparse.HelpFormatter, action: argparse.Action) -> str:
    values = formatter._format_args(action, action.metavar or action.dest.upper()) if action.nargs != 0 else ""
    names = ", ".join(action.option_strings) or ""
    text = f"{names} {values}".strip()
    return f"<code>{html.escape(text).replace('|', '&#124;')}</code>" if "|" in text else f"`{text}`"


def _engine_tables() -> Iterator[str]:
    yield "## Defaults that differ from Megatron's\n"
    yield "A flag on the command line overrides them; of flags that exclude one another, such as `--lr-warmup-fraction`"
    yield "and `--lr-warmup-iters`, the one that is given takes the place of a default.\n"
    for title, defaults in (
        ("All trainers", _engine_defaults()),
        ("`pretrain_mixcpt.py`", pretraining.RECIPE_DEFAULTS),
        ("`train_sft.py` and `train_dpo.py`", alignment.RECIPE_DEFAULTS),
    ):
        yield f"**{title}**\n\n| flag | default here |\n|---|---|"
        yield from (f"| `{_flag(name)}` | {_value(name, value)} |" for name, value in defaults.items() if name != "sft")
        yield ""
    yield "## Flags of the model\n"
    yield "They follow from config.json of `--hf-model` (or of the checkpoint's `hf/`); one that contradicts it is"
    yield f"refused by name: {_listed(sorted(OF_THE_MODEL))}.\n"
    yield "## Flags that hold, and that a resumed run must repeat\n"
    yield from _classes(SERVED, "what they decide")
    yield "## Flags that hold, and that may differ between a run and what it resumes\n"
    yield from _classes(HARMLESS_ENGINE_ARGUMENTS, "what they decide")
    yield "## Flags that something else decides in one kind of training\n"
    for title, decided in (
        ("`pretrain_mixcpt.py`", DECIDED_IN_PRETRAINING),
        ("`train_sft.py` and `train_dpo.py`", DECIDED_IN_ALIGNMENT),
    ):
        yield f"**{title}**\n\n| flag | reason |\n|---|---|"
        yield from (f"| `{flag_of(name)}` | {_prose(reason)} |" for name, reason in decided.items())
        yield ""
    yield "## Flags that are refused in all trainers\n"
    yield "They would not do what they say, or are not tested. A value that is Megatron's default is taken.\n"
    yield from _classes(REFUSED, "reason")
    for name, values in REFUSED_VALUES.items():
        yield from (f"`{flag_of(name)} {value}` is refused as well: {reason}." for value, reason in values.items())


def _classes(table: Mapping[str, str], what: str) -> Iterator[str]:
    """Flags by reason or subject."""
    yield f"| {what} | flags |\n|---|---|"
    for reason in dict.fromkeys(table.values()):
        yield f"| {_prose(reason)} | {_listed([name for name, why in table.items() if why == reason])} |"
    yield ""


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{flag_of(name)}`" for name in names)


def _engine_defaults() -> dict[str, Any]:
    """What is set for every model."""
    model = SimpleNamespace(engine_arguments={})
    defaults = engine.engine_defaults(model, eos_id=0)
    of_the_machine = {"gradient_accumulation_fusion", *engine._WITHOUT_FUSED_KERNELS}
    return {name: value for name, value in defaults.items() if name not in of_the_machine}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _value(name: str, value: Any) -> str:
    return DESCRIBED.get(name) or f"`{value}`"


def _prose(text: str) -> str:
    """Text of a help or docstring as Markdown in a table's cell."""
    text = " ".join(text.replace("``", "`").split())
    return "".join(
        part if part.startswith("`") else re.sub(r"([|*<>\\])", r"\\\1", part) for part in re.split(r"(`[^`]*`)", text)
    )


def main() -> None:
    """Write the pages, or compare them."""
    parser = flags.Parser(__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a page is stale")
    is_check = parser.parse_args().check
    for path, text in ((PAGE, page()), (ENGINE_PAGE, engine_page()), (FAMILIES_PAGE, families_page())):
        if not is_check:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            shown = path.relative_to(ROOT)
            sys.exit(f"error: {shown} is stale: run python docs/generate_reference.py")


if __name__ == "__main__":
    main()
