"""A recording -> the prepared dataset: frames, overlapping pairs, surface."""
