"""Benchmark tasks that lm-eval lacks, or whose programs it would run unprotected; lm-eval reads the YAML files here."""
