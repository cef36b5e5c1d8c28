"""Hugging Face checkpoints in and out of the engine, exactly: one short file of tables per architecture."""
