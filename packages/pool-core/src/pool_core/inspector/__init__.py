"""A page to look at pools: an ASGI application without dependencies. Mount it where operators may reach it::

    app.mount("/pools", inspector(pool))

It shows each connection, who holds it and for how long, the queue, the last errors and five minutes of history, and
refreshes itself. ``state.json`` beside the page has the same for a program. It shows names of tasks, texts of errors and
stacks: protect it as you protect your metrics and logs.
"""

from ._app import inspector

__all__ = ["inspector"]
