"""The few kinds of error a user can meet; each message names the file or flag, the value and the fix."""

from __future__ import annotations


class Pri3DError(Exception):
    """Base of every error pri3d raises on purpose; the command line prints it without a traceback and exits 1."""


class DataError(Pri3DError):
    """A recording, prepared store or image is missing, damaged or inconsistent."""


class FrameError(DataError):
    """One frame is unusable; ``prepare`` lists it with the reason and goes on."""


class ConfigError(Pri3DError):
    """A flag, preset or name is wrong; the message lists the choices."""


class WeightsError(Pri3DError):
    """A checkpoint does not fit: the message counts matched, missing and unexpected keys."""
