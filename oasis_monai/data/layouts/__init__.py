"""Layouts of data sets: where their cases lie."""
