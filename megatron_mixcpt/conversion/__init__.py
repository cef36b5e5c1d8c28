"""Hugging Face and Megatron checkpoints, read, checked and written, both ways and bit for bit.

``hf_*`` and ``safetensors_*`` know model folders, ``megatron_*`` the engine's checkpoints; ``convert.py`` goes from one
to the other on disk, ``load.py`` from a model folder into an engine model. ``architectures/`` holds one short file of
tables for each family of models.
"""
