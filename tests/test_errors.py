"""What is said of errors that others raise."""

from __future__ import annotations

import errno

import pytest

from pri3d.errors import first_line
from pri3d.files.atomic import is_full


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_no_room_is_told_from_other_errors(number: int) -> None:
    assert is_full(OSError(number, "x"))
    assert not is_full(OSError(errno.EACCES, "x"))
    assert not is_full(ValueError(number))


def test_the_first_line_of_an_error_or_its_kind() -> None:
    assert first_line(RuntimeError("size mismatch\n  for conv1")) == "size mismatch"
    assert first_line(KeyError()) == "KeyError"
