"""Evaluation of frozen features: correspondence, linear probes, retention."""
