"""RabbitMQ for pool_core, on aio-pika: leases are channels."""

from ._channel import LeasedChannel
from ._manager import RabbitMQChannelManager

__all__ = ["LeasedChannel", "RabbitMQChannelManager"]
