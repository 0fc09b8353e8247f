"""The ways a weight travels from host memory to a device buffer, behind one small contract.

A lane copies in the order it was asked to. It hands out tokens: one for a copy that has landed, one for
readers that have finished. What a token is, is the lane's own matter; who waits for which is the swapper's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor

Token = Any
STAGING_BYTES = 64 << 20  # a pinned allocation is rounded up to a power of two by torch
STAGING_BUFFERS = 3  # one is filled, one is sent, one waits


class CopyLane(Protocol):
    """Copies flat uint8 tensors to the device, in order, beside the work that reads them."""

    def copy(self, target: Tensor, source: Tensor, after: Sequence[Token] = ()) -> Token:
        """Begin a copy once all of ``after`` has happened; the token says that it has landed."""

    def read(self, copied: Token) -> None:
        """Let what is started from now on wait until the copy has landed."""

    def done(self) -> Token:
        """A token for the end of everything that was started so far."""

    def wait(self, token: Token) -> None:
        """Hold the calling thread until the token has happened."""

    def finish(self) -> None:
        """Hold the calling thread until no copy and no reader is left; the lane may be used again."""


class Inline:
    """Copies at once; for the CPU and for tests."""

    def copy(self, target: Tensor, source: Tensor, after: Sequence[Token] = ()) -> Token:
        target.copy_(source)

    def read(self, copied: Token) -> None:
        pass

    def done(self) -> Token:
        pass

    def wait(self, token: Token) -> None:
        pass

    def finish(self) -> None:
        pass


class CudaLane:
    """Copies on a stream of its own and lets the streams, not the host, wait for each other.

    ``cuda`` is torch.cuda, or what stands in for it where there is none.
    """

    def __init__(self, device: torch.device, cuda=torch.cuda):
        self.device, self.cuda = device, cuda
        self.stream = cuda.Stream(device)

    def copy(self, target: Tensor, source: Tensor, after: Sequence[Token] = ()) -> Token:
        for event in after:
            self.stream.wait_event(event)
        # Asynchronous where the source is pinned. No record_stream: the slots outlive every copy.
        with self.cuda.stream(self.stream):
            self._move(target, source)
        return self._event(self.stream)

    def read(self, copied: Token) -> None:
        self.cuda.current_stream(self.device).wait_event(copied)

    def done(self) -> Token:
        return self._event(self.cuda.current_stream(self.device))

    def wait(self, token: Token) -> None:
        token.synchronize()

    def finish(self) -> None:
        self.stream.synchronize()
        self.cuda.current_stream(self.device).synchronize()

    def _event(self, stream) -> Token:
        event = self.cuda.Event()
        event.record(stream)
        return event

    def _move(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source, non_blocking=True)


class StagedLane:
    """Takes pageable weights through a few small pinned buffers that a thread fills; pinned ones go straight.

    A copy from pageable memory stops the host and the device; here only the thread waits. Its tokens are
    futures of the inner lane's, so a reader's wait can be queued once the copy has been.
    """

    def __init__(
        self,
        inner: CopyLane,
        *,
        make_buffer: Callable[[int], Tensor] | None = None,
        nbytes: int = STAGING_BYTES,
        buffers: int = STAGING_BUFFERS,
    ):
        self.inner, self.nbytes, self.buffers = inner, nbytes, buffers
        self._make_buffer = make_buffer or pinned_buffer
        self._worker: ThreadPoolExecutor | None = None
        self._ring: list[tuple[Tensor, Token]] = []

    def copy(self, target: Tensor, source: Tensor, after: Sequence[Token] = ()) -> Token:
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="happyhorse-weights")
        return self._worker.submit(self._carry, target, source, tuple(after))

    def read(self, copied: Future) -> None:
        self.inner.read(copied.result())

    def done(self) -> Token:
        return self.inner.done()

    def wait(self, token: Token) -> None:
        self.inner.wait(token.result() if isinstance(token, Future) else token)

    def finish(self) -> None:
        if self._worker is not None:
            self._worker.shutdown(wait=True, cancel_futures=True)
            self._worker = None
        self.inner.finish()
        self._ring.clear()

    def _carry(self, target: Tensor, source: Tensor, after: Sequence[Token]) -> Token:
        if source.is_pinned():
            return self.inner.copy(target, source, after)
        token = None
        for start in range(0, source.numel(), self.nbytes):
            part = source[start : start + self.nbytes]
            buffer = self._free_buffer()[: part.numel()]
            buffer.copy_(part)
            token = self.inner.copy(target[start : start + self.nbytes], buffer, after)
            self._ring[-1] = (self._ring[-1][0], token)
            after = ()  # the inner lane copies in order
        return token

    def _free_buffer(self) -> Tensor:
        """The buffer that was sent longest ago, moved to the end of the ring."""
        if len(self._ring) < self.buffers:
            self._ring.append((self._make_buffer(self.nbytes), None))
        else:
            buffer, sent = self._ring.pop(0)
            self._ring.append((buffer, None))
            if sent is not None:  # None where its copy failed
                self.inner.wait(sent)
        return self._ring[-1][0]


def pinned_buffer(nbytes: int) -> Tensor:
    """A pinned buffer, or a pageable one where even that is refused: slower, with the same result."""
    with torch.inference_mode(False):
        try:
            return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
        except RuntimeError:
            return torch.empty(nbytes, dtype=torch.uint8)
