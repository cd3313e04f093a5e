"""Contracts for plug-ins of other packages: test classes to inherit, run by pytest.

Inherit one in a test file, name what is tested, and pytest runs every check of its kind::

    from pri3d.testing import EncoderContract

    class TestTinyConv(EncoderContract):
        name = "tinyconv"

Only this package imports pytest: ``pip install "pri3d[testing]"``.
"""

from __future__ import annotations

import pytest

# Before they are imported, so that a failing assertion shows its values.
pytest.register_assert_rewrite(
    *(f"pri3d.testing.{name}" for name in ("encoder", "exporting", "labelled_set", "objective", "reader", "task"))
)

from pri3d.testing.encoder import EncoderContract  # noqa: E402
from pri3d.testing.exporting import ExportFormatContract  # noqa: E402
from pri3d.testing.labelled_set import LabelledSetContract  # noqa: E402
from pri3d.testing.objective import ObjectiveContract  # noqa: E402
from pri3d.testing.reader import ReaderContract  # noqa: E402
from pri3d.testing.task import TaskContract  # noqa: E402

__all__ = [
    "EncoderContract",
    "ExportFormatContract",
    "LabelledSetContract",
    "ObjectiveContract",
    "ReaderContract",
    "TaskContract",
]
