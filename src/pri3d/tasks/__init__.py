"""Downstream tasks: what is put on a backbone, how it is trained and scored."""
