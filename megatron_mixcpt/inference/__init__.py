"""Forward passes without the training program: a model read from either kind of folder, run at any TP x PP x DP.

``model_source.py`` opens a Hugging Face folder or a Megatron checkpoint, ``engine_model.py`` builds and fills its
stages, ``batches.py`` puts sequences of like length together, ``runner.py`` gives their tokens' log-probabilities.
"""
