"""The public commands: one light module each, with its options as typed fields. Nothing here imports PyTorch or NumPy.

A verb is a function whose parameters are the fields of an :class:`pri3d.api.options.Options` class; the command line,
the presets' keys, ``--help`` and the checks come from the same fields. What does the work is imported when a verb is
called. This is the lowest layer: whoever does the work takes the options from here.
"""
