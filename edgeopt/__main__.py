"""``python -m edgeopt`` is the command ``edgeopt``."""

import sys

from edgeopt.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
