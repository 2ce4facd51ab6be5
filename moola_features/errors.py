"""One base error; every message names the thing, the value found and the remedy."""

from __future__ import annotations


class MoolaError(Exception):
    """Base of every error that moola raises for something a user can put right."""


class ConfigError(MoolaError, ValueError):
    """A configuration value that is out of bounds, unknown or contradictory."""


class BarsError(MoolaError, ValueError):
    """Bars that cannot be read, or that contradict themselves."""


class BarsNotFoundError(MoolaError, FileNotFoundError):
    """A file of bars that is not there."""


class StoreError(MoolaError, ValueError):
    """A store that cannot be read, or that does not fit what is asked of it."""


class StoreNotFoundError(MoolaError, FileNotFoundError):
    """No store stands where one was looked for."""


class OutputError(MoolaError, OSError):
    """Something could not be written: a full disk, a missing folder, no permission."""


class RemoteError(OutputError):
    """An object store, or a cluster, that cannot be reached or that refuses."""


class WindowError(MoolaError, ValueError):
    """Windows asked for with a length, a stride or a buffer that cannot work."""


class WindowIndexError(MoolaError, IndexError):
    """A window position outside the windows there are."""


class StreamError(MoolaError, ValueError):
    """A bar or a saved state that a stream cannot go on from."""
