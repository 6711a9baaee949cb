"""What the tests do to a RabbitMQ beside using it."""

import asyncio

from containers.servers import Server


async def rabbitmqctl(broker: Server, *words: str) -> str:
    """Run RabbitMQ's own command in its container; in a process, since the conformance suite counts our sockets."""
    command = ["docker", "exec", broker._site.id, "rabbitmqctl", "--quiet", *words]  # type: ignore[attr-defined]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate()
    assert process.returncode == 0, f"rabbitmqctl {words} failed"
    return said.decode()
