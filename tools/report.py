"""One page about several runs: who learned the domain, who forgot the rest, and what was set differently.

    python tools/report.py outputs/reproduce --domain French --output outputs/report     # finds what is in the folder
    python tools/report.py --run mixcpt=checkpoints/mixcpt --evaluation base=eval/base mixcpt=eval/mixcpt \\
        --base base --domain medicine --scores mixcpt=scores.jsonl --output report

Writes DIR/report.html, a single file that needs nothing else, and each picture as PNG. Names that end in a seed
(mixcpt/seed-1, mixcpt/seed-2) are one method: mean and spread. More in docs/how-to/compare-runs.md.
"""

from megatron_mixcpt.report.tool import main

if __name__ == "__main__":
    main()
