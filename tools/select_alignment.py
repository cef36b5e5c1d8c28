"""Select the samples for format alignment from their scores.

    python tools/select_alignment.py --scores scores.jsonl --kind sft --strategy high --top-k 10000 --output sft.jsonl

The output holds the samples themselves and goes to --sft or --dpo of training. Beside it are FILE.report.json (how
many, why the others were left out, the distribution of the scores) and, where matplotlib is installed, FILE.png.
"""

from megatron_mixcpt.errors import exit_on_user_error
from megatron_mixcpt.selection.arguments import select_parser
from megatron_mixcpt.selection.select import Selection, select_alignment


@exit_on_user_error
def main() -> None:
    """Parse the flags, select, print a summary."""
    arguments = select_parser(__doc__).parse_args()
    selection = Selection(arguments.scores, arguments.kind, arguments.strategy, arguments.top_k, arguments.seed)
    report = select_alignment(selection, arguments.output, arguments.rejects)
    left_out = ", ".join(f"{number:,} {reason}" for reason, number in report["left_out"].items()) or "none"
    print(f"{arguments.output}: {report['selected']:,} samples; left out: {left_out}")
    print(f"report: {arguments.output}.report.json")
    print(f"picture: {report['picture'] or 'none, matplotlib is not installed (pip install matplotlib)'}")


if __name__ == "__main__":
    main()
