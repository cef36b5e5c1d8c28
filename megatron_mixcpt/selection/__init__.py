"""Format alignment: score the samples by their format alignment score (paper section 2.3), and select some of them.

=====================  ===========================================================================================
``fas.py``             the score of a sample from its tokens' log-probabilities (Eq. 8, 9)
``settings.py``        settings of both tools
``samples.py``         rows of data files become samples to score, or a reason why not
``score_files.py``     parts of the scores, written while a run goes on, and joined at its end
``score.py``           a scoring run; ``score_tool.py`` is the program behind ``tools/score_alignment.py``
``strategies.py``      which samples a strategy picks, in constant memory
``histogram.py``       the distribution of the scores, counted and drawn
``select.py``          a selection; ``select_tool.py`` is the program behind ``tools/select_alignment.py``
=====================  ===========================================================================================
"""
