"""A pre-training run whose terminal is its standard input, as in a window that a user may close."""

from __future__ import annotations

import fcntl
import signal
import sys
import termios

from processes import SMALL, work

if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    options = {**SMALL, "objectives": {"view": 1}, "steps": 2000, "workers": 2}
    sys.exit(work(*sys.argv[1:3], ["pretrain"], options))
