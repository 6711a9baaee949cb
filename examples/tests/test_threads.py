"""The examples of the pool for threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from subprocess import Popen

from examples.flask_app import create_app


def test_threads_create_users_over_sqlite(start: Callable[..., Popen[str]]) -> None:
    """Diesel's page."""
    process = start("threads_users.py")
    output, _ = process.communicate(timeout=50)
    assert process.returncode == 0, output
    assert output == "users: 20 20\nconnections: True\n"


def test_flask_serves_users_and_says_503() -> None:
    """One pool for all requests; without a connection the service says so."""
    app = create_app("sqlite://")
    pool = app.extensions["pool"]
    try:

        def post(number: int) -> None:
            assert app.test_client().post("/users", json={"name": f"user {number}"}).status_code == 201

        threads = [threading.Thread(target=post, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        client = app.test_client()
        assert sorted(client.get("/users").get_json()) == sorted(f"user {number}" for number in range(20))
        assert "0 in use" in client.get("/health").get_json()["pool"]
        pool.close()
        answer = client.get("/users")
        assert (answer.status_code, answer.get_json()) == (503, {"error": "PoolClosed"})
    finally:
        pool.close()
