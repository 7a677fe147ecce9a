"""The errors a user meets: one sentence each, and the exit code that belongs to it."""

from __future__ import annotations


class EdgeSvdError(Exception):
    """Base of everything that the command line reports as one sentence instead of a traceback."""

    exit_code = 1


class Failure(EdgeSvdError):
    """The work itself failed (disk full, a proof that did not hold)."""

    exit_code = 1


class InputError(EdgeSvdError):
    """Bad usage or bad input: an unknown name, an unreadable file, a value out of range."""

    exit_code = 2


class BundleError(EdgeSvdError):
    """A bundle is damaged or not ours. `verify` reports it with exit code 1, every other command with 2."""

    exit_code = 2


class BudgetError(EdgeSvdError):
    """No plan meets the budget.

    Attributes:
        smallest: the smallest reachable value, in the budget's own unit (bytes for sizes).
        dominant: what takes the largest part of that value.
    """

    exit_code = 3

    def __init__(self, message: str, *, smallest: int, dominant: str) -> None:
        super().__init__(message)
        self.smallest = smallest
        self.dominant = dominant
