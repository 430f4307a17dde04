"""`python -m vlaa_lib`."""

import sys

from vlaa_lib.cli import main

if __name__ == "__main__":
    sys.exit(main())
