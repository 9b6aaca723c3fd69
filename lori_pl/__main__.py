"""``python -m lori_pl``."""

import sys

from lori_pl.cli import main

if __name__ == "__main__":
    sys.exit(main())
