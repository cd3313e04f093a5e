"""Common code of labelled datasets."""
