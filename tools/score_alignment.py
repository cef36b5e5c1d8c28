"""Score instruction and preference samples: the format alignment score (FAS) and the response's perplexity.

    python tools/score_alignment.py --hf-model models/Llama-3-8B --chat-template llama3 --sft chat.jsonl \\
        --dpo pairs.parquet --output scores.jsonl
    torchrun --nproc-per-node 8 tools/score_alignment.py --load checkpoints/mixcpt --sft chat.jsonl \\
        --output scores.jsonl --tensor-model-parallel-size 2 --pipeline-model-parallel-size 2

One line per sample, in the order of the input; those without a score are in scores.rejects.jsonl with the reason.
Started again after an interruption, it resumes. The fields are explained in docs/reference/file-formats.md.
"""

from megatron_mixcpt import cpu_emulation

cpu_emulation.install()

from megatron_mixcpt.selection.score_tool import main  # noqa: E402 - Megatron is imported after the emulation

if __name__ == "__main__":
    main()
