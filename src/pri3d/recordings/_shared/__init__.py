"""Common code of readers."""
