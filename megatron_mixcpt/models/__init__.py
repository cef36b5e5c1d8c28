"""Transformer layers for machines without Transformer Engine, and the choice between the two."""
