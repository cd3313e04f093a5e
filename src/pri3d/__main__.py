"""``python -m pri3d``."""

import sys

from pri3d.cli import main

if __name__ == "__main__":
    sys.exit(main())
