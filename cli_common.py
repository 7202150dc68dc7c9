"""How the commands print: the console, plain text, strict JSON."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


#: Columns of a table that goes to a file or a pipe.
PLAIN_WIDTH = 118


def output_console() -> Console:
    """Standard output: coloured on a terminal (unless NO_COLOR is set), wide and plain in a pipe."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


def plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def strict_json(value: Any) -> str:
    """Strict JSON on one line: a number that is not finite becomes null."""

    def finite(v: Any) -> Any:
        if isinstance(v, dict):
            return {k: finite(x) for k, x in v.items()}
        if isinstance(v, (list, tuple)):
            return [finite(x) for x in v]
        return None if isinstance(v, float) and not math.isfinite(v) else v

    return json.dumps(finite(value), allow_nan=False)
