"""Transformer layers for machines without Transformer Engine, and the choice between these and Transformer Engine's."""
