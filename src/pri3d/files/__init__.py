"""Common handling of the files that pri3d writes."""
