"""The one exception type for mistakes a user can mend."""

from __future__ import annotations

__all__ = ["FLDDError"]


class FLDDError(ValueError):
    """A mistake in data, configuration or usage; its message says what to do.

    The command line prints the message of this exception as one paragraph and ends with
    status 1, without a traceback.
    """
