"""The gate: whether new work is let in.

Owns one flag. Must not know what asks.
"""

from __future__ import annotations

from eddy.service.errors import CapacityError, Reason


class Gate:
    """Open until the server drains."""

    def __init__(self) -> None:
        # Set by the host, on the event loop, once.
        self.is_draining = False

    def refuse_if_draining(self) -> None:
        """Raises CapacityError while the server drains."""
        if self.is_draining:
            raise CapacityError(
                Reason.DRAINING, "the server is shutting down; nothing of this request was applied, send it elsewhere"
            )
