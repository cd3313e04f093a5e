"""Procedural furnished rooms: exact depth, poses, class and instance labels without a data set."""
