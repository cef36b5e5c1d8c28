"""Evaluate a Hugging Face folder, a Megatron checkpoint or a served model: perplexity, benchmark tasks, MT-Bench.

    python tools/evaluate.py --hf-model models/Llama-3-8B --perplexity law=heldout/law.jsonl.gz english=heldout/en \\
        --output evaluations/base
    torchrun --nproc-per-node 8 tools/evaluate.py --load checkpoints/mixcpt --perplexity law=heldout/law.jsonl.gz \\
        --sequence-length 4096 --stride 2048 --output evaluations/mixcpt --tensor-model-parallel-size 8
    python tools/evaluate.py --load checkpoints/dpo --tasks math reasoning --output evaluations/aligned
    python tools/evaluate.py --base-url http://localhost:8000/v1 --served-model dpo --hf-model models/dpo \\
        --tasks math --output evaluations/served
    python tools/evaluate.py --list-suites

Writes results.json, which tools/report.py compares runs by, and prints a table. See docs/how-to/evaluate.md.
"""

from megatron_mixcpt import cpu_emulation

cpu_emulation.install()

from megatron_mixcpt.evaluation.tool import main  # noqa: E402 - Megatron is imported after the emulation

if __name__ == "__main__":
    main()
