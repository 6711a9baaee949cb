"""Django's async views on SQLite, in one file: what is not the ORM's goes through the pool.

Django's ORM opens connections of its own, synchronous ones in threads, and cannot use this pool; its transactions do not
cover what a view does here. Django has no ASGI lifespan either: ``create_app`` puts one in front of it.

python examples/django_app.py               # or DATABASE_URL=sqlite:///notes.db
curl -X POST localhost:8000/notes/hello; curl localhost:8000/notes; curl localhost:8000/metrics
"""

from __future__ import annotations

import os
from typing import Any

import aiosqlite
import django
import uvicorn
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from pool_core import Pool, PoolUnavailable
from pool_core.prometheus import instrument
from pool_sqlite import SqliteConnectionManager
from prometheus_client import CollectorRegistry, generate_latest

urlpatterns: list[Any] = []


class Unavailable:
    """Middleware: a full pool, or a database that is away, is a 503."""

    async_capable, sync_capable = True, False

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response
        # So Django knows that it may call this object as a coroutine function.
        from asgiref.sync import markcoroutinefunction

        markcoroutinefunction(self)

    async def __call__(self, request: HttpRequest) -> HttpResponse:
        response: HttpResponse = await self.get_response(request)
        return response

    def process_exception(self, _: HttpRequest, error: Exception) -> HttpResponse | None:
        if isinstance(error, PoolUnavailable):
            return JsonResponse({"detail": "busy: try again"}, status=503, headers={"Retry-After": "1"})
        return None


def create_app(pool: Pool[aiosqlite.Connection]) -> Any:
    registry = CollectorRegistry()
    instrument(pool, registry=registry)

    async def write(_: HttpRequest, text: str) -> HttpResponse:
        async with pool.get() as conn:
            cursor = await conn.execute("INSERT INTO notes (text) VALUES (?)", (text,))
            await conn.commit()
        return JsonResponse(cursor.lastrowid, safe=False, status=201)

    async def read(_: HttpRequest) -> HttpResponse:
        async with pool.get() as conn:
            rows = await conn.execute_fetchall("SELECT text FROM notes ORDER BY id DESC LIMIT 10")
        return JsonResponse([text for (text,) in rows], safe=False)

    async def metrics(_: HttpRequest) -> HttpResponse:
        return HttpResponse(generate_latest(registry), content_type="text/plain")

    urlpatterns[:] = [path("notes/<str:text>", write), path("notes", read), path("metrics", metrics)]
    if not settings.configured:
        settings.configure(
            ROOT_URLCONF=__name__, SECRET_KEY="example", ALLOWED_HOSTS=["*"], MIDDLEWARE=[f"{__name__}.Unavailable"]
        )
        django.setup()
    inner = get_asgi_application()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await inner(scope, receive, send)
            return
        await receive()
        try:
            await pool.open()
            async with pool.get() as conn:
                await conn.execute("CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL)")
                await conn.commit()
        except Exception as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            raise
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await pool.close()
        await send({"type": "lifespan.shutdown.complete"})

    return app


def main() -> None:
    manager = SqliteConnectionManager(os.environ.get("DATABASE_URL", "sqlite://"), wal=True)
    pool = Pool(manager, name="notes", max_size=4, min_idle=1, connection_timeout=5)
    uvicorn.run(create_app(pool), host="127.0.0.1", port=int(os.environ.get("PORT", "8000")))


if __name__ == "__main__":
    main()
