"""Contracts for what other packages add to pri3d: test classes to inherit, run by pytest."""
