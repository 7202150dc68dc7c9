"""Timelines for the eye: Chrome's trace format, a page of HTML, and a PNG (matplotlib, an optional extra)."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from ..ir.errors import NesteggError
from .analysis import analyse, kind
from .asm import disassemble
from .isa import Unit, encode
from .timing import Cause, Timeline

#: Colours of kinds of instructions, by the first part of their name.
COLOURS = {
    "gemm": "#2f6f8f",
    "reset": "#9ab8c6",
    "alu": "#c98a2b",
    "load": "#4c9a62",
    "store": "#a2557f",
    "no-op": "#8a8f96",
    "finish": "#333333",
}
#: Bars that a drawing shows; above that, neighbours of one kind become one.
MAX_BARS = 3000


# --- Chrome ---------------------------------------------------------------------------------------


def chrome_trace(timeline: Timeline) -> dict[str, Any]:
    """The JSON object that chrome://tracing and Perfetto read: one microsecond of it is one cycle.

    Every unit is a thread; an arrow leads from an instruction that pushed a token to the one that waited for it.
    """
    names = [_thread(u, u.name.lower()) for u in Unit]
    return {"traceEvents": [*names, *_events(timeline)], "otherData": {"unit": "cycles", "cycles": timeline.cycles}}


def _thread(unit: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": "thread_name", "pid": 0, "tid": unit, "args": {"name": name}}


def _events(t: Timeline) -> Iterator[dict[str, Any]]:
    texts = _texts(t)
    for index in range(len(t.stream)):
        start, end, unit = int(t.start[index]), int(t.end[index]), int(t.units[index])
        cause, after = Cause(int(t.cause[index])), int(t.after[index])
        arguments = {"index": index, "text": texts[index], "waited_for": cause.name, "after": after}
        arguments["queued"] = int(t.queued[index])
        at = {"pid": 0, "tid": unit}
        yield {
            "ph": "X",
            "name": kind(t.rows[index]),
            "cat": "vta",
            "ts": start,
            "dur": end - start,
            "args": arguments,
        } | at
        if cause >= Cause.L2C:
            flow = {"name": cause.name, "cat": "token", "id": index, "pid": 0}
            yield flow | {"ph": "s", "ts": int(t.end[after]) - 1, "tid": int(t.units[after])}
            yield flow | {"ph": "f", "bp": "e", "ts": start, "tid": unit}


def _texts(t: Timeline) -> list[str]:
    return disassemble(encode(t.stream, t.config), t.config)


def write_chrome(timeline: Timeline, path: Path) -> None:
    path.write_text(json.dumps(chrome_trace(timeline)))


# --- drawings -------------------------------------------------------------------------------------


@dataclass
class Bar:
    """Instructions of one kind on one unit, from `start` to `end` in cycles."""

    start: int
    end: int
    kind: str
    title: str
    count: int = 1

    @property
    def colour(self) -> str:
        return COLOURS[self.kind.partition(".")[0]]


def bars(timeline: Timeline, unit: Unit, gap: int = 0) -> list[Bar]:
    """What a unit did; neighbours of one kind that are at most `gap` cycles apart as one bar (0: none are joined)."""
    t, texts = timeline, _texts(timeline)
    found: list[Bar] = []
    for index in t.of_unit(unit).tolist():
        start, end, name = int(t.start[index]), int(t.end[index]), kind(t.rows[index])
        if gap and found and found[-1].kind == name and start - found[-1].end <= gap:
            found[-1].end, found[-1].count = end, found[-1].count + 1
            found[-1].title = f"{found[-1].count} x {name}, until {end:,}"
        else:
            found.append(Bar(start, end, name, f"{index}: {texts[index]} ({start:,} … {end:,})"))
    return found


def _drawn(timeline: Timeline) -> dict[Unit, list[Bar]]:
    """The bars of each unit, joined until they are few enough to draw."""
    gap = 0
    while True:
        drawn = {unit: bars(timeline, unit, gap) for unit in Unit}
        if sum(map(len, drawn.values())) <= MAX_BARS or gap > timeline.cycles:
            return drawn
        gap = max(2, 4 * gap)


def html(timeline: Timeline, title: str) -> str:
    """A page that needs nothing else: the three units over time, what they waited for, the longest stalls."""
    drawn = _drawn(timeline)
    count = sum(map(len, drawn.values()))
    template = Path(__file__).with_name("timeline.html").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(template).render(
        title=title,
        a=analyse(timeline),
        board=timeline.board,
        lanes=[{"name": unit.name.lower(), "bars": drawn[unit]} for unit in Unit],
        ticks=_ticks(timeline.cycles),
        colours=COLOURS,
        merged=count if count < len(timeline.stream) else 0,
        count=len(timeline.stream),
        texts=_texts(timeline),
    )


def _ticks(cycles: int) -> list[int]:
    """Some five round numbers between 0 and the end."""
    step = 10 ** (len(str(max(1, cycles // 5))) - 1)
    while cycles // step > 8:
        step *= 2
    return list(range(0, cycles + 1, step))


def write_png(timeline: Timeline, path: Path, title: str) -> None:
    """Draw the three units over time. Raises `NesteggError` if matplotlib is not installed."""
    try:
        figure_module = importlib.import_module("matplotlib.figure")
    except ImportError as e:
        raise NesteggError(f"{path}: a PNG needs matplotlib; install nestegg[plot]") from e
    figure = figure_module.Figure(figsize=(12, 2.6), layout="constrained")
    axes = figure.subplots()
    for unit, found in _drawn(timeline).items():
        spans = [(bar.start, bar.end - bar.start) for bar in found]
        axes.broken_barh(spans, (2 - unit + 0.1, 0.8), facecolors=[bar.colour for bar in found])
    axes.set_yticks([2.5, 1.5, 0.5], [u.name.lower() for u in Unit])
    axes.set_xlabel("cycles")
    axes.set_xlim(0, timeline.cycles)
    axes.set_title(f"{title}: {timeline.cycles:,} cycles")
    figure.savefig(path, dpi=150)
