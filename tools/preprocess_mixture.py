#!/usr/bin/env python3
"""Make the knowledge mixture: documents, instructions and preferences become indexed datasets; ``--help`` says more.

    .venv/bin/python tools/preprocess_mixture.py --cpt docs/ --sft chat.jsonl --dpo pairs.parquet \\
        --tokenizer models/Llama-3-8B --output data/mixture --workers 8
"""

from megatron_mixcpt.data.preprocessing.tool import main

if __name__ == "__main__":
    main()
