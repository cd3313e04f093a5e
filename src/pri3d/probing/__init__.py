"""What frozen features are worth: correspondence, linear probes, retention."""
