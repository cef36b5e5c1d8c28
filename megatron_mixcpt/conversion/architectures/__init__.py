"""A short file of tables per family of models, and what these are written in; ``registry.py`` lists them."""
