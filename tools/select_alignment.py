"""Select the samples for format alignment from their scores.

    python tools/select_alignment.py --scores scores.jsonl --kind sft --strategy high --top-k 10000 --output sft.jsonl

The output holds the samples themselves and goes to --sft or --dpo of training. Beside it are FILE.report.json (how
many, why the others were left out, the distribution of the scores) and, where matplotlib is installed, FILE.png.
"""

from megatron_mixcpt.selection.select_tool import main

if __name__ == "__main__":
    main()
