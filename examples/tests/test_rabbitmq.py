"""The publisher and the consumer over a real RabbitMQ: every order that was accepted is handled."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from collections.abc import Callable

    from containers.servers import ServerFactory

    Start = Callable[..., subprocess.Popen[str]]


async def answers(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(15):
        while True:
            try:
                await client.get("/")
            except httpx.TransportError:
                await asyncio.sleep(0.05)
            else:
                return


def listen(consumer: subprocess.Popen[str], accepted: set[str]) -> None:
    """Read what the consumer says until it has handled all of these."""
    assert consumer.stdout is not None
    watchdog = threading.Timer(30, consumer.kill)
    watchdog.start()
    said, missing = [], set(accepted)
    for line in consumer.stdout:
        said.append(line)
        missing.discard(line.removeprefix("handled ").strip())
        if not missing:
            break
    watchdog.cancel()
    assert not missing, "".join(said)


async def test_every_accepted_order_is_handled_over_lost_connections(start: Start, server: ServerFactory) -> None:
    """Two hundred orders; in their middle the broker closes all connections, those of the consumer among them."""
    broker: Any = server("rabbitmq")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    environment = {"AMQP_URL": broker.url, "QUEUE": f"orders-{port}", "PORT": str(port)}
    publisher, consumer = (start(f"rabbitmq_{name}.py", **environment) for name in ("publisher", "consumer"))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as client:
        await answers(client)
        gate = asyncio.Semaphore(10)

        async def order(number: int) -> httpx.Response:
            async with gate:
                if number == 100:
                    close = ["docker", "exec", broker._site.id, "rabbitmqctl", "-q", "close_all_connections", "test"]
                    await asyncio.to_thread(subprocess.run, close, check=True, capture_output=True)
                return await client.post("/orders", content=b"order %d" % number)

        responses = await asyncio.gather(*(order(number) for number in range(200)))
        accepted = {response.json()["id"] for response in responses if response.status_code == 202}
        assert {response.status_code for response in responses} <= {202, 503}
        assert len(accepted) > 150
    await asyncio.to_thread(listen, consumer, accepted)
    for process in (publisher, consumer):
        process.send_signal(signal.SIGTERM)
        said, _ = await asyncio.to_thread(process.communicate, timeout=15)
        assert process.returncode == 0, said
    assert "stopped" in said
