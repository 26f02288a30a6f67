"""Accuracy on test scans that were changed on purpose, with the fold models of a cross-validation."""
