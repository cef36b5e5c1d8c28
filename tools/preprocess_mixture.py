"""Make the knowledge mixture: documents, instructions and preferences become indexed datasets that Megatron trains on.

    python tools/preprocess_mixture.py --cpt docs/ --sft chat.jsonl --dpo pairs.parquet \\
        --tokenizer models/Llama-3-8B --output data/mixture --workers 8

Writes cpt.bin/.idx, sft.bin/.idx and dpo.bin/.idx (those that were given), rejects.jsonl.gz with every record that gave
no sample, and mixture.json, which describes them. Started again after an interruption, it goes on where it was. The
formats and all options are explained in docs/how-to/prepare-data.md.
"""

from pathlib import Path

from megatron_mixcpt.data.preprocessing.arguments import build_parser, listing, settings_from
from megatron_mixcpt.data.preprocessing.run import describe_plan, preprocess
from megatron_mixcpt.errors import exit_on_user_error


@exit_on_user_error
def main() -> None:
    """Parse the flags, preprocess, print a summary."""
    arguments = build_parser(__doc__).parse_args()
    if text := listing(arguments):
        print(text)
        return
    settings = settings_from(arguments)
    if arguments.dry_run:
        print(describe_plan(settings, Path(arguments.output)))
        return
    manifest = preprocess(settings, Path(arguments.output), arguments.workers)
    print(manifest.summary())


if __name__ == "__main__":
    main()
