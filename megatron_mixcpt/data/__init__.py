"""From files of documents, instructions and preferences to indexed datasets, and from those to a blend for training.

The preprocessing path (everything but ``blend.py``) imports neither torch nor megatron, so that the tool starts in a
fraction of a second and a worker process stays small.

=====================  ===========================================================================================
``records.py``         Document, Conversation, PreferencePair, and how a JSON object becomes one of them
``unify.py``           the unified format (paper section 2.1.1): a record becomes one plain text
``sources.py``         paths on the command line become files of a known format
``readers.py``         files become rows, with a line number each
``tokenizer_files.py`` what a tokenizer folder says: its files, its end of sequence, its special tokens
``encoding.py``        texts become token ids
``indexed.py``         the engine's .bin/.idx pair, written and read with numpy alone
``manifest.py``        mixture.json: what a folder of datasets holds and what made it
``preprocess.py``      the whole of ``tools/preprocess_mixture.py``
``mixture.py``         how many sequences of each kind a run trains on (pure arithmetic)
``blend.py``           the engine's datasets for such a plan
=====================  ===========================================================================================
"""
