#!/usr/bin/env python3
"""Make the knowledge mixture: documents, instructions and preferences become indexed datasets; ``--help`` says more.

    .venv/bin/python tools/preprocess_mixture.py --cpt docs/ --sft chat.jsonl --dpo pairs.parquet \\
        --tokenizer models/Llama-3-8B --output data/mixture --workers 8
<<<<<<< HEAD

Writes cpt.bin/.idx, sft.bin/.idx and dpo.bin/.idx (those that were given), rejects.jsonl.gz with every record that gave
no sample, and mixture.json, which describes them. Started again after an interruption, it goes on where it was. The
formats and all options are explained in docs/how-to/prepare-data.md.
=======
>>>>>>> 516dcb8 (tools/preprocess_mixture.py takes its settings from dataclasses, the kinds' by prefix; main is in the room, the tool a door)
"""

from megatron_mixcpt.data.preprocessing.tool import main

if __name__ == "__main__":
    main()
