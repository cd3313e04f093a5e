"""A recording -> the prepared store: frames, overlapping pairs, surface."""
