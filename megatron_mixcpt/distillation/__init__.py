"""Teacher and student through one Megatron pipeline: built, run and communicated side by side."""
