"""The program behind ``tools/evaluate.py``, which imports it once the CPU emulation is in place."""

from collections.abc import Sequence
from pathlib import Path

from megatron_mixcpt import flags
from megatron_mixcpt.evaluation.evaluate import evaluate
from megatron_mixcpt.evaluation.settings import EvaluateSettings
from megatron_mixcpt.rank_exit import exit_as_rank, stops_at_sigterm

ABOUT = """Evaluate a Hugging Face folder, a Megatron checkpoint or a model behind a server: perplexity of texts,
benchmark tasks, MT-Bench.

Writes DIR/results.json, which tools/report.py reads, and prints a table. See docs/how-to/evaluate.md."""

OUT_OF_MEMORY = (
    "try a smaller --batch-tokens (perplexities) or --task-batch-size (tasks), or more --tensor-model-parallel-size"
)


def build_parser() -> flags.Parser:
    """The parser of the command line."""
    return flags.build_parser(ABOUT, EvaluateSettings)


@exit_as_rank(OUT_OF_MEMORY)
def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, evaluate, write and print."""
    settings = flags.settings_from(build_parser().parse_args(argv), EvaluateSettings)
    with stops_at_sigterm(lambda: _outcome(settings.output)):
        evaluate(settings)


def _outcome(output: Path) -> str:
    return f"{output} is complete" if output.exists() else f"nothing was written to --output {output}"
