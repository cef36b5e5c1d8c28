"""From files of documents, instructions and preferences to indexed datasets, and from those to a blend for training.

The preprocessing path (everything but ``blend.py``) imports neither torch nor megatron, so that the tool starts in a
fraction of a second and a worker process stays small.

=====================  ===========================================================================================
``records.py``         Document, Conversation, PreferencePair, and how a JSON object becomes one of them
``unify.py``           the unified format (paper section 2.1.1): a record becomes one plain text
``sources.py``         paths on the command line become files of a known format
``readers.py``         files become rows, with a line number each; ``compression.py`` and ``tables.py`` open them
``samples.py``         a row becomes a sample, or the reason why not, by way of ``presets.py``, ``filters.py``,
                       ``chat_templates.py`` and ``decontaminate.py``
``tokenizer_files.py`` what a tokenizer folder says: its files, its end of sequence, its special tokens
``encoding.py``        texts become token ids
``parts.py``           the work cut into parts; ``part_worker.py`` does one, ``pool.py`` many at a time
``selection.py``       duplicates and limits on tokens, with ``near_duplicates.py``; ``merge.py`` joins what stays,
                       ``source_counts.py`` accounts for the rest
``indexed.py``         the engine's .bin/.idx pair, written and read with numpy alone
``manifest.py``        mixture.json: what a folder of datasets holds and what made it
``preprocess.py``      the whole of ``tools/preprocess_mixture.py``, with ``work_folder.py`` to resume in; its flags are
                       in ``arguments.py``, what they ask for in ``settings.py``
``mixture.py``         how many sequences of each kind a run trains on (pure arithmetic)
``blend.py``           the engine's datasets for such a plan
=====================  ===========================================================================================
"""
