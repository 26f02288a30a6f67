"""Metrics, scores, statistics, predicted Dice, tables, figures and the HTML report."""
