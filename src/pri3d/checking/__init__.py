"""Validation of recordings: evidence, hypotheses, results."""
