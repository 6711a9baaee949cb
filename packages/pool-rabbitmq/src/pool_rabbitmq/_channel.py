"""A channel that knows what its borrower left behind: aio_pika's own, watched where its frames go out."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

import aio_pika
from aiormq.abc import ChannelFrame
from aiormq.channel import Returning
from pamqp import commands as spec

if TYPE_CHECKING:
    import aiormq

    from ._line import Line


def _id(method: Any) -> bytes:
    return int(method.index).to_bytes(4, "big")  # class and method, as they stand in a frame


# State of a channel that only closing it takes away.
_LASTING: Final = (spec.Basic.Qos, spec.Basic.Consume, spec.Tx.Select, spec.Confirm.Select)
# Sent without an answer; what is wrong with them is told later, by closing the channel.
_UNANSWERED: Final = frozenset(map(_id, (spec.Basic.Ack, spec.Basic.Nack, spec.Basic.Reject)))
_PUBLISH: Final = _id(spec.Basic.Publish)
_PATIENCE: Final = 1.0  # seconds
_CLOSE: Final = _id(spec.Channel.Close)


class _Outbox:
    """The connection's queue of frames to send, as one channel sees it."""

    def __init__(self, queue: asyncio.Queue[ChannelFrame], channel: LeasedChannel) -> None:
        self._queue, self._channel = queue, channel

    async def put(self, frame: ChannelFrame) -> None:
        method = frame.payload[7:11]
        if method in _UNANSWERED or (method == _PUBLISH and not self._channel.publisher_confirms):
            self._channel.unproven = True
        elif method == _CLOSE and self._queue.full():
            # aiormq sends this before it lets a cancelled request end. While the broker reads nothing it would wait
            # here for ever: so leave it out, and give up the connection.
            self._channel.line.sealed = self._channel.line.condemned = True
            return
        await self._queue.put(frame)

    def put_nowait(self, frame: ChannelFrame) -> None:
        """Send what aiormq sends only when the broker has closed the channel: the answer to that."""
        self._channel.spoiled = True
        self._queue.put_nowait(frame)


class _QueueIterator(aio_pika.queue.QueueIterator):
    async def close(self) -> None:
        # A cancelled consumer waits here for the broker's answer, for ever if the broker hangs. Without an answer aiormq
        # closes the channel, which ends the consumer too.
        async with asyncio.timeout(_PATIENCE):
            await super().close()


class _Queue(aio_pika.Queue):
    def iterator(self, **kwargs: Any) -> _QueueIterator:
        return _QueueIterator(self, **kwargs)


class LeasedChannel(aio_pika.Channel):
    """The channel that a lease yields. Usable as any other; it does not reopen.

    Attributes:
        line: the connection that it shares.
        spoiled: closed by the broker, or a request on it was interrupted or failed.
        lasting: has state that only closing it takes away: a consumer, a prefetch, a transaction.
        unproven: something was sent whose failure would show later, or a message was fetched and maybe not acknowledged.
    """

    QUEUE_CLASS = _Queue

    line: Line
    wire: aiormq.abc.AbstractChannel
    spoiled = lasting = unproven = has_left = False
    _requests = 0

    @classmethod
    async def open(cls, line: Line, prefetch_count: int | None, **options: Any) -> LeasedChannel:
        """Open a channel on a connection whose login is done."""
        channel = cls(cast("Any", line), **options)
        channel.line = line
        await channel.initialize()
        channel.wire = await channel.get_underlay_channel()
        if prefetch_count is not None:
            await channel.set_qos(prefetch_count)
        channel._watch()
        return channel

    def _watch(self) -> None:
        wire: Any = self.wire
        rpc = wire.rpc

        async def watched(frame: Any, timeout: float | None = None) -> Any:
            self._note(frame)
            self._requests += 1
            try:
                return await rpc(frame, timeout=timeout)
            except BaseException:
                self.spoiled = True
                raise
            finally:
                self._requests -= 1

        wire.rpc = watched
        wire.write_queue = _Outbox(wire.write_queue, self)

    def _note(self, frame: Any) -> None:
        if isinstance(frame, _LASTING):
            self.lasting = True
        if isinstance(frame, spec.Basic.Get) or getattr(frame, "nowait", False):
            self.unproven = True
        if isinstance(frame, spec.Queue.Declare) and frame.exclusive:
            # The queue lives as long as the connection, and every channel on it can use it.
            self.line.sealed = self.line.condemned = True

    async def close(self, exc: Any = None) -> None:
        """Close the channel, and with the last channel its connection."""
        if self.has_left:
            return
        if self.line.users > 1:
            await super().close(exc)
        if self.line.users == 1:
            await self.line.close()
        self.leave()

    async def reopen(self) -> NoReturn:
        """Refused: the pool would not see what is done with the new channel."""
        raise RuntimeError("a leased channel does not reopen: release it, and get another one from the pool")

    @property
    def is_unusable(self) -> bool:
        """Whether it is closed, or has anything under way."""
        wire: Any = self.wire
        return bool(
            self.spoiled
            or self._requests
            or self.is_closed
            or self.line.is_unusable
            or wire.frames.qsize()
            or wire.rpc_frames.qsize()
            or (wire.confirmations and any(not isinstance(one, Returning) for one in wire.confirmations.values()))
        )

    def forget_callbacks(self) -> None:
        """Remove the callbacks that a borrower has registered."""
        self.return_callbacks.clear()
        if len(self.close_callbacks) > 1:
            self.close_callbacks.clear()
            self.close_callbacks.add(self._set_closed_callback)
        self.wire.on_consumer_cancel_callbacks.clear()

    async def prove(self) -> None:
        """Requeue what was fetched and not acknowledged. Whatever was wrong before is told before this is answered."""
        await self.wire.basic_recover(requeue=True)
        self.unproven = False

    def leave(self) -> None:
        """Give up the place on the connection, once."""
        if not self.has_left:
            self.has_left = True
            self.line.leave()

    def abort(self) -> None:
        """End it at once, without waiting. Whoever waits for an answer gets an error."""
        if self.has_left:
            return
        line, wire, quiet = self.line, cast("Any", self.wire), not self.is_unusable
        self.spoiled = line.sealed = line.condemned = True
        self.leave()
        if not line.users or line.loop.is_closed():
            return
        if quiet:  # a lost lease: its messages go back to their queues now. In all other cases aiormq has closed it
            with contextlib.suppress(asyncio.QueueFull):
                close = spec.Channel.Close(reply_code=200, class_id=0, method_id=0)
                wire.write_queue.put_nowait(ChannelFrame.marshall(channel_number=wire.number, frames=[close]))
        line.loop.call_soon(wire._cancel_tasks, ConnectionResetError("the pool has terminated this channel"))
