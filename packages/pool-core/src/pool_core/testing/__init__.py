"""Tools for testing the pool, adapters, and programs that use them."""

from __future__ import annotations

from pool_core.testing._clock import LeftoverError, StuckError, VirtualTimeLoop, run, settle
from pool_core.testing._conformance import Lab, ManagerConformance, Probe
from pool_core.testing._fakes import (
    NEVER,
    OK,
    Call,
    Delay,
    FakeConnection,
    FakeManager,
    Gate,
    Outcome,
    ScriptedCustomizer,
    ScriptedManager,
    Steps,
    SwallowCancel,
)
from pool_core.testing._injector import (
    CancelMode,
    Injection,
    Injector,
    Scenario,
    acancel_everywhere,
    cancel_everywhere,
)
from pool_core.testing._proxy import Direction, FaultProxy

__all__ = [
    "NEVER",
    "OK",
    "Call",
    "CancelMode",
    "Delay",
    "Direction",
    "FakeConnection",
    "FakeManager",
    "FaultProxy",
    "Gate",
    "Injection",
    "Injector",
    "Lab",
    "LeftoverError",
    "ManagerConformance",
    "Outcome",
    "Probe",
    "Scenario",
    "ScriptedCustomizer",
    "ScriptedManager",
    "Steps",
    "StuckError",
    "SwallowCancel",
    "VirtualTimeLoop",
    "acancel_everywhere",
    "cancel_everywhere",
    "run",
    "settle",
]
