"""All of ``tools/preprocess_mixture.py``: samples, what stays of them, the merge, and the run itself."""
