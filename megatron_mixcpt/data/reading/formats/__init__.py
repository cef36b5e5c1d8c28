"""Input formats: one file and one entry in ``registry.py`` for each; ``docs/how-to/add-input-format.md`` shows how."""
