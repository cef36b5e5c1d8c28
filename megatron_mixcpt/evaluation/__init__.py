"""What ``tools/evaluate.py`` measures: perplexity of texts, benchmark tasks through lm-eval, and MT-Bench."""
