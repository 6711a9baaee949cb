"""The adapter of examples/custom_manager.py; the suite's tests check it and wrong versions of it.

It does not use runpy: since Python 3.15 a traceback through a module without a loader warns, and warnings are errors here.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

_file = Path(__file__).parents[4] / "examples" / "custom_manager.py"
_spec = importlib.util.spec_from_file_location("custom_manager", _file)
assert _spec is not None
assert _spec.loader is not None
_example = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_example)
main: Any = _example.main
LineConnection: Any = _example.LineConnection
LineManager: Any = _example.LineManager
LineServer: Any = _example.LineServer
