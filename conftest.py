"""Tests of all packages share the real servers of containers/."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
pytest_plugins = ["containers.plugin"]
