"""From files of documents, instructions and preferences to indexed datasets, and from those to a blend for training.

==================  ==============================================================================================
``records.py``      Document, Conversation, PreferencePair, and how a JSON object becomes one of them
``sample_id.py``    the identity of a conversation or pair, by what it says
``long_text.py``    texts that are too long to be held unpacked
``reading/``        paths on the command line become records; one file for each input format in ``reading/formats/``
``chat/``           chat templates: chosen, rendered, and the tokens of a conversation
``tokens/``         texts become token ids
``preprocessing/``  all of ``tools/preprocess_mixture.py``
``mixture/``        what it writes: datasets, their manifest, and the plan of a run that trains on them
``datasets/``       the engine's datasets for such a plan, and packed rows for SFT and DPO
==================  ==============================================================================================

Only ``datasets/`` imports torch or the engine, so that preparing data starts in a fraction of a second and a worker
process stays small.
"""
