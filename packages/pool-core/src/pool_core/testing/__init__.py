"""Tools for testing the pool, adapters, and programs that use them."""

from __future__ import annotations

from pool_core.testing._clock import LeftoverError, StuckError, VirtualTimeLoop, run, settle

__all__ = ["LeftoverError", "StuckError", "VirtualTimeLoop", "run", "settle"]
