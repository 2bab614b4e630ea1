"""A cancel scope: the body of a ``with``, which others may cancel without cancelling its task."""

import asyncio
from types import TracebackType


class CancelScope:
    """``cancel`` ends the body at its next await, and the end of the ``with`` swallows that cancellation.

    Like an ``asyncio.timeout`` whose deadline is moved to now, but that waits for a turn of the event loop
    first. A busy loop takes long for one, and whoever leaves passes two scopes before a provider is closed.
    """

    __slots__ = ("_cancelling", "_handle", "_task", "cancelled")

    def __init__(self) -> None:
        self.cancelled = False
        self._task: asyncio.Task[object] | None = None
        self._handle: asyncio.Handle | None = None

    def cancel(self) -> None:
        """Does nothing outside of the body, and the second time."""
        if self._task is None or self.cancelled or self._handle is not None:
            return
        if asyncio.current_task() is self._task:
            # It may have no await left that a cancellation could end, and would meet it after the scope.
            self._handle = asyncio.get_running_loop().call_soon(self._cancel)
        else:
            self._cancel()

    def _cancel(self) -> None:
        assert self._task is not None
        self.cancelled = True
        self._task.cancel()

    def __enter__(self) -> "CancelScope":
        self._task = asyncio.current_task()
        assert self._task is not None
        self._cancelling = self._task.cancelling()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        task, self._task = self._task, None
        assert task is not None
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if not self.cancelled:
            return False
        # Somebody else may have cancelled the task as well: that goes on.
        return task.uncancel() <= self._cancelling and kind is asyncio.CancelledError
