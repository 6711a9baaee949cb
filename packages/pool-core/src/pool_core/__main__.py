"""``python -m pool_core``: see ``_cli``."""

import sys

from pool_core._cli import main

sys.exit(main())
