"""The ASGI application: one page, its data beside it, and what ``allow`` lets a person do."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
import weakref
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from pool_core._errors import PoolError
from pool_core._pool import check_pool

from ._view import View

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, MutableMapping

    from pool_core._pool import Pool

    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
    Answer = tuple[int, str, bytes, Iterable[tuple[str, str]]]

ACTIONS = ("evict", "resize")
MOST_BODY = 10_000

JSON, TEXT, HTML = "application/json", "text/plain; charset=utf-8", "text/html; charset=utf-8"


def inspector(*pools: Pool[Any], allow: Collection[str] = ()) -> Inspector:
    """Make an ASGI application that shows these pools, to be mounted under any path.

    ``GET`` on its root answers with the page, ``GET state.json`` with what the page shows. Once a second a few numbers
    are kept for the charts, from now on and while the pool is open; gets and returns cost nothing more.

    The application asks nobody who he is. Protect it as you protect metrics and logs: it shows the names of tasks, the
    texts of errors and, with ``leak_threshold``, stacks.

    Args:
        pools: One or more, each with a ``name`` of its own.
        allow: What may be done from the page: ``"evict"``, ``"resize"``. Nothing by default.

    Raises:
        TypeError: one of them is not a Pool.
        ValueError: no pool, two of one name, or an unknown word in ``allow``.
    """
    if not pools:
        msg = "inspector(): expected at least one Pool"
        raise ValueError(msg)
    for pool in pools:
        check_pool(pool)
    names = [pool._shell.config.name for pool in pools]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        msg = f"name={twice[0]!r}: two pools have this name: give each pool a name of its own (Pool(name=...))"
        raise ValueError(msg)
    chosen = (allow,) if isinstance(allow, str) else tuple(allow)
    if unknown := [word for word in chosen if word not in ACTIONS]:
        msg = f"allow={unknown[0]!r}: expected any of {', '.join(map(repr, ACTIONS))}"
        raise ValueError(msg)
    return Inspector(pools, frozenset(chosen))


class Inspector:
    """The application that :func:`inspector` makes."""

    def __init__(self, pools: Iterable[Pool[Any]], allow: frozenset[str]) -> None:
        self._pools = {pool._shell.config.name: pool for pool in pools}
        self._views = [View(pool._shell) for pool in self._pools.values()]
        for view in self._views:
            weakref.finalize(self, view.leave)
        self._allow = allow
        self._page, self._policy = _read_page()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            await _serve_lifespan(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        status, kind, body, extra = await self._answer(scope, receive)
        headers = {
            "content-type": kind,
            "content-length": str(len(body)),
            "cache-control": "no-store",
            "content-security-policy": self._policy,
            "x-content-type-options": "nosniff",
            "x-frame-options": "DENY",
            "referrer-policy": "no-referrer",
            **dict(extra),
        }
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()],
            }
        )
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _answer(self, scope: Scope, receive: Receive) -> Answer:
        path, method = _path(scope), scope["method"]
        if path in ("", "state.json"):
            if method not in ("GET", "HEAD"):
                return _refuse(405, f"{method} is not allowed here", ("allow", "GET, HEAD"))
            return (200, HTML, self._page, ()) if path == "" else _json(200, self.document())
        if path not in self._allow:
            reason = (
                f"{path} is not allowed: give inspector(..., allow={(path,)!r})" if path in ACTIONS else "not found"
            )
            return _refuse(403 if path in ACTIONS else 404, reason)
        if method != "POST":
            return _refuse(405, f"{method} is not allowed here", ("allow", "POST"))
        headers = {name.lower(): value for name, value in scope["headers"]}
        # A form of another site cannot send this type, and its script is not let to: so the order is this page's own.
        if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != JSON.encode():
            return _refuse(415, f"content-type: expected {JSON}")
        try:
            order = json.loads(await _read(receive))
            pool = self._pools[order["pool"]]
        except (ValueError, TypeError, KeyError):
            return _refuse(400, f'expected an object with "pool": one of {", ".join(self._pools)}')
        try:
            return _json(200, {"done": _carry_out(path, pool, order)})
        except (ValueError, TypeError) as error:
            return _refuse(400, str(error))
        except PoolError as error:  # closed, or open on another loop
            return _refuse(409, str(error))

    def document(self) -> dict[str, Any]:
        """What the page shows, as plain values."""
        pools = []
        for view in self._views:
            try:
                pools.append(view.document())
            except PoolError as error:  # it was opened before a fork
                verdict = {"level": "off", "text": str(error)}
                pools.append({"name": view.name, "stage": "forked", "verdict": verdict})
        return {"at": time.time(), "allow": sorted(self._allow), "pools": pools}


def _carry_out(action: str, pool: Pool[Any], order: dict[str, Any]) -> str:
    if action == "evict":
        pool._shell.life.check_open()
        count = pool.evict()
        return f"{count} {'connection is' if count == 1 else 'connections are'} retired"
    sizes = {name: order[name] for name in ("max_size", "min_idle") if name in order}
    if not sizes:
        msg = 'expected "max_size", "min_idle" or both'
        raise ValueError(msg)
    pool.resize(**sizes)
    return f"max_size={pool.config.max_size}, min_idle={pool.config.min_idle}"


def _path(scope: Scope) -> str:
    """Return the path below the mount, without slashes at its ends. Frameworks differ in what they leave in it."""
    path, root = scope["path"], scope.get("root_path", "")
    if root and (path == root or path.startswith(f"{root}/")):
        path = path[len(root) :]
    return str(path).strip("/")


def _json(status: int, document: dict[str, Any]) -> Answer:
    return status, JSON, json.dumps(document, allow_nan=False).encode(), ()


def _refuse(status: int, reason: str, *headers: tuple[str, str]) -> Answer:
    return status, TEXT, f"{reason}\n".encode(), headers


async def _read(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MOST_BODY:
            msg = "too long"
            raise ValueError(msg)
        if not message.get("more_body"):
            return bytes(body)


async def _serve_lifespan(receive: Receive, send: Send) -> None:
    """There is nothing to begin or to end: the pools are the program's."""
    while (kind := (await receive())["type"]) != "lifespan.shutdown":
        await send({"type": f"{kind}.complete"})
    await send({"type": "lifespan.shutdown.complete"})


def _read_page() -> tuple[bytes, str]:
    """Return the page, and the policy that lets just its own style and script run."""
    page = files("pool_core.inspector").joinpath("page.html").read_text("utf-8")

    def hash_of(tag: str) -> str:
        found = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert found is not None
        return f"'sha256-{base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()}'"

    policy = (
        f"default-src 'none'; style-src {hash_of('style')}; script-src {hash_of('script')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page.encode(), policy
