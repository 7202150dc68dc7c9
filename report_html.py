"""The report as one self-contained HTML file: `templates/report.html`, with drawings as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .ir.errors import NesteggError
from .ir.graph import CONSTANT, INPUT, Graph
from .report_text import amount, extraction, fired, left_open, size, stopped, verification

if TYPE_CHECKING:
    from .codegen.program import Program
    from .compiler import Compiled

#: Boxes drawn at most; the lists beside the drawings are always whole.
MAX_DRAWN = 400
_CHAR, _HEIGHT, _GAP_X, _GAP_Y, _MARGIN, _BEND_WIDTH = 6.8, 36, 18, 22, 8, 10


def write(compiled: Compiled, found: dict[str, Any], path: str | Path) -> None:
    """Write the page. `found` is the report as JSON. Raises `NesteggError` if the file cannot be written."""
    try:
        Path(path).write_text(render(compiled, found), encoding="utf-8")
    except OSError as e:
        raise NesteggError(f"{path}: cannot be written ({e.strerror}); choose another place") from None


def render(compiled: Compiled, found: dict[str, Any]) -> str:
    """The page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = Path(__file__).parent / "templates"
    env = Environment(loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined)
    env.filters |= {"amount": amount, "size": size, "stopped": stopped, "thousands": lambda n: f"{n:,}"}
    before, folded = graph_drawing(compiled.graph)
    return env.get_template("report.html").render(
        r=found,
        verification=verification(found),
        extraction=extraction(found),
        left=left_open(found),
        fired={"graph": fired(found["graph"]["rules"]), "loop": fired(found["loops"]["rules"])},
        before=svg(before),
        folded=folded,
        after=svg(program_drawing(compiled.program)),
        growth=growth_line(found["graph"]["growth"]),
        graph_text=str(compiled.graph),
        calls=[(k, wiring(compiled.program, n)) for n, k in enumerate(found["kernels"])],
        constants=sum(c.nbytes for c in compiled.program.constants),
        searched=found["loops"]["kernels_searched"],
    )


# --- what is drawn --------------------------------------------------------------------------------


@dataclass
class Box:
    """A box of a drawing: two lines of text, the boxes it reads, and how full it is drawn (0 to 1)."""

    label: str
    detail: str
    inputs: list[int] = field(default_factory=list)
    share: float = 0.0
    leaf: bool = False
    bend: bool = False

    @property
    def width(self) -> float:
        return _BEND_WIDTH if self.bend else 20 + _CHAR * max(len(self.label), len(self.detail))


def graph_drawing(graph: Graph) -> tuple[list[Box], int]:
    """The operators that depend on an input, and how many nodes do not (known at compile time, not drawn)."""
    number: dict[int, int] = {}
    boxes: list[Box] = []
    for k, n in enumerate(graph.nodes):
        reads = [number[i] for i in n.inputs if i in number]
        if n.op == CONSTANT or not (reads or n.op == INPUT):
            continue
        number[k] = len(boxes)
        label = f"{n.op} {n.label}" if n.op == INPUT else n.op
        boxes.append(Box(label, str(n.type), list(dict.fromkeys(reads)), leaf=n.op == INPUT))
    for place, o in enumerate(graph.outputs):
        boxes.append(Box(f"output {place}", "", [number[o]] if o in number else [], leaf=True))
    return boxes, len(graph.nodes) - len(number)


def program_drawing(program: Program) -> list[Box]:
    """Kernels with the buffers they hand over; a box is filled by its share of the predicted time."""
    total = sum(c.seconds for c in program.calls) or 1.0
    boxes: list[Box] = []
    made: dict[int, int] = {}
    for k, b in enumerate(program.buffers):
        if b.space == "input":
            made[k] = len(boxes)
            boxes.append(Box(f"input {b.index}", str(b.type), leaf=True))
    for c in program.calls:
        reads = list(dict.fromkeys(made[a] for a in c.args if a in made))
        detail = f"{program.buffers[c.result].type} {c.seconds * 1e6:,.1f} us"
        made[c.result] = len(boxes)
        boxes.append(Box(c.name, detail, reads, c.seconds / total))
    for k, b in enumerate(program.buffers):
        if b.space == "output":
            boxes.append(Box(f"output {b.index}", "", [made[k]] if k in made else [], leaf=True))
    return boxes


def wiring(program: Program, n: int) -> str:
    """`temporary 7: f32[1,512] = kernel0(input 0: …, constant 0: …)`"""

    def name(k: int) -> str:
        b = program.buffers[k]
        return f"{b.space} {b.index if b.space != 'temporary' else k}: {b.type}"

    call = program.calls[n]
    return f"{name(call.result)} = {call.name}({', '.join(map(name, call.args))})"


# --- drawing --------------------------------------------------------------------------------------


def svg(boxes: Sequence[Box]) -> str:
    """A layered drawing of a DAG, inputs on top; long edges pass between the boxes they cross."""
    from html import escape

    drawn = boxes[:MAX_DRAWN]
    layers, everything = _layers(drawn)
    x, y, width, height = _places(layers, everything)
    out = [_opening(width, height)]
    for k, b in enumerate(everything):
        for i in b.inputs:
            top, bottom = y[i] + _HEIGHT, y[k]
            middle = (top + bottom) / 2
            curve = f"{x[i]:.0f} {middle:.0f} {x[k]:.0f} {middle:.0f} {x[k]:.0f} {bottom}"
            out.append(f'<path d="M{x[i]:.0f} {top} C{curve}"/>')
    for k, b in enumerate(everything):
        if b.bend:
            out.append(f'<path d="M{x[k]:.0f} {y[k]}V{y[k] + _HEIGHT}"/>')
            continue
        left, w = x[k] - b.width / 2, b.width
        kind = ' class="leaf"' if b.leaf else ""
        out.append(f'<rect{kind} x="{left:.0f}" y="{y[k]}" width="{w:.0f}" height="{_HEIGHT}" rx="5"/>')
        if b.share:
            full = f'x="{left:.0f}" y="{y[k] + _HEIGHT - 4}" width="{w * b.share:.1f}" height="4"'
            out.append(f'<rect class="share" {full}/>')
        line = y[k] + (15 if b.detail else 22)
        out.append(f'<text x="{x[k]:.0f}" y="{line}">{escape(b.label)}</text>')
        out.append(f'<text class="detail" x="{x[k]:.0f}" y="{y[k] + 29}">{escape(b.detail)}</text>')
    if len(boxes) > len(drawn):
        more = f"{len(boxes) - len(drawn)} more are not drawn"
        out.append(f'<text x="{width / 2:.0f}" y="{height - 4:.0f}">{more}</text>')
    return "".join([*out, "</svg>"])


def _opening(width: float, height: float, kind: str = "") -> str:
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    return f'<svg {size} role="img"{kind}>'


def _layers(boxes: Sequence[Box]) -> tuple[list[list[int]], list[Box]]:
    """Boxes by their longest path from an input, with bends in every layer that an edge crosses."""
    level: list[int] = []
    for b in boxes:
        level.append(1 + max((level[i] for i in b.inputs), default=-1))
    everything = [Box(b.label, b.detail, [], b.share, b.leaf) for b in boxes]
    layers: list[list[int]] = [[] for _ in range(max(level, default=0) + 1)]
    for k, n in enumerate(level):
        layers[n].append(k)
    bends: dict[tuple[int, int], int] = {}
    for k, b in enumerate(boxes):
        for i in b.inputs:
            last = i
            for between in range(level[i] + 1, level[k]):
                if (i, between) not in bends:
                    bends[i, between] = len(everything)
                    layers[between].append(len(everything))
                    everything.append(Box("", "", [last], bend=True))
                last = bends[i, between]
            everything[k].inputs.append(last)
    return layers, everything


def _places(layers: list[list[int]], boxes: Sequence[Box]) -> tuple[list[float], list[int], float, float]:
    """Centres and tops. A layer is in the order of what its boxes read, and centred."""
    x, y = [0.0] * len(boxes), [0] * len(boxes)
    for n, layer in enumerate(layers):
        layer.sort(key=lambda k: sum(x[i] for i in boxes[k].inputs) / max(len(boxes[k].inputs), 1))
        total = sum(boxes[k].width for k in layer) + _GAP_X * (len(layer) - 1)
        at = -total / 2
        for k in layer:
            x[k], y[k] = at + boxes[k].width / 2, _MARGIN + n * (_HEIGHT + _GAP_Y)
            at += boxes[k].width + _GAP_X
    left = min((x[k] - b.width / 2 for k, b in enumerate(boxes)), default=0.0) - _MARGIN
    right = max((x[k] + b.width / 2 for k, b in enumerate(boxes)), default=0.0) + _MARGIN
    return [c - left for c in x], y, right - left, 2 * _MARGIN + len(layers) * (_HEIGHT + _GAP_Y)


def growth_line(sizes: Sequence[int], width: int = 260, height: int = 48) -> str:
    """The size of the graph e-graph after every round of rules, as a small line."""
    if len(sizes) < 2:
        return ""
    top = max(sizes) or 1
    points = " ".join(
        f"{4 + k * (width - 8) / (len(sizes) - 1):.1f},{height - 4 - n * (height - 8) / top:.1f}"
        for k, n in enumerate(sizes)
    )
    return _opening(width, height, ' class="growth"') + f'<polyline points="{points}"/></svg>'
