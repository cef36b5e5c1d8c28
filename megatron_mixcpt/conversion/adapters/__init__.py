"""Adapters on disk: in checkpoints of the engine, merged into exported models, and as folders of PEFT."""
