"""Tests of all packages share the real servers of containers/."""

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
pytest_plugins = ["containers.plugin"]

# A shell starts what runs in its background with Ctrl-C ignored, and children inherit that: the tests of Ctrl-C must not.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
