"""Forward passes without the training program: a model from either kind of folder, run at any TP x PP x DP.

``model_source.py`` opens a Hugging Face folder or a Megatron checkpoint, ``parallel_groups.py`` starts the ranks,
``engine_model.py`` builds and fills the model's stages, ``batches.py`` groups sequences of similar length, and
``runner.py`` gives the log-probabilities of their tokens.
"""
