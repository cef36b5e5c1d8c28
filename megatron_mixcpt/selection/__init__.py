"""Format alignment: score the samples by their format alignment score (paper section 2.3), and select some of them.

=====================  ===========================================================================================
``fas.py``             the score of a sample from its tokens' log-probabilities (Eq. 8, 9)
``settings.py``        what a scoring run is asked for
``samples.py``         rows of data files become samples to score, or the reason why not
``score_files.py``     parts of the scores, put aside while a run goes on, and joined at its end
``score.py``           the whole of ``tools/score_alignment.py``; its flags are in ``arguments.py``
``strategies.py``      which samples a strategy picks, in constant memory
``histogram.py``       the distribution of the scores, counted and drawn
``select.py``          the whole of ``tools/select_alignment.py``
=====================  ===========================================================================================
"""
