"""Python's collector of cyclic garbage, and when not to let it run."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collection() -> Iterator[None]:
    """Without the search for cyclic garbage: a compilation or an extraction makes millions of objects that live until
    its end, and the collector would go through them, and all others, again and again (a fifth of the time)."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
