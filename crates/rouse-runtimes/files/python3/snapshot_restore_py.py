"""Hooks around the snapshot: the interface of the package of the same name on PyPI, for functions that do not bring it.

Hooks before the snapshot run from the last registered to the first, hooks after a restore in the order of registration.
"""

__all__ = ["register_before_snapshot", "register_after_restore"]

_before_snapshot = []
_after_restore = []


def register_before_snapshot(func, *args, **kwargs):
    """Calls `func(*args, **kwargs)` before the snapshot is taken. Returns `func`, so that it serves as a decorator."""
    _before_snapshot.append((func, args, kwargs))
    return func


def register_after_restore(func, *args, **kwargs):
    """Calls `func(*args, **kwargs)` in every instance, before its first invocation. Returns `func`."""
    _after_restore.append((func, args, kwargs))
    return func


def get_before_snapshot():
    """The list of (func, args, kwargs) in the order of registration."""
    return _before_snapshot


def get_after_restore():
    """The list of (func, args, kwargs) in the order of registration."""
    return _after_restore
