"""One short file of tables for each family of models; ``registry.py`` beside this folder lists them."""
