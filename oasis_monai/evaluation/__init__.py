"""Evaluation: metrics, statistics, predicted Dice, tables, figures and the HTML report.

Public modules: :mod:`.metrics` (Dice, Hausdorff distance, ...), :mod:`.scores` (``scores.csv`` and summaries),
:mod:`.statistics`, :mod:`.quality` and :mod:`.quality_tables` (predicted Dice), :mod:`.comparison` and :mod:`.learning_curve`
(tables of a study), :mod:`.tables` (Markdown, LaTeX), :mod:`.figures`, :mod:`.contours`, :mod:`.case_grid`, :mod:`.case_view`;
the package :mod:`.report` (the HTML page).
"""
