"""Tools for testing the pool, adapters, and programs that use them; they need pool-core and nothing else.

- :func:`run`, :func:`settle`, :class:`VirtualTimeLoop`: programs on virtual time, where ``sleep(1800)`` is instant, a
  deadlock is an error that names the tasks, and what a program leaves behind is one too.
- :class:`ScriptedManager`, :class:`ScriptedCustomizer` and their outcomes (:data:`OK`, :data:`NEVER`, :class:`Delay`,
  :class:`Steps`, :class:`SwallowCancel`, :class:`Gate`): a manager whose every call can go wrong.
  :class:`FakeManager`: one that costs next to nothing.
- :func:`cancel_everywhere`, :func:`acancel_everywhere`, :class:`Injector`: a cancel at every place where it can arrive.
- :class:`FaultProxy`: a TCP proxy that freezes, resets, refuses, trickles and cuts.
- :class:`ManagerConformance`, :class:`Probe`: every question that an adapter must answer, asked with its real server.
"""

from __future__ import annotations

from pool_core.testing._clock import LeftoverError, StuckError, VirtualTimeLoop, run, settle
from pool_core.testing._conformance import ManagerConformance
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
from pool_core.testing._lab import Lab, Probe
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
