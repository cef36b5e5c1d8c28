"""One short file of tables for each family of models, listed in ``registry.py``.

The tables are written in the rules of ``rules.py`` and the fields of ``hf_config.Architecture``.
"""
