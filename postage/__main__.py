"""``python -m postage``: the same as the command ``postage``."""

from __future__ import annotations

import sys

from postage.cli import main

if __name__ == '__main__':
    sys.exit(main())
