"""TASO's released substitutions, derived: a left side is saturated with nestegg's rules until the right side appears.

    python benchmarks/taso_rules.py [FILE] [--json] [--only N]

FILE holds them as operator lists (133 in the release of TASO, Jia et al., SOSP 2019). For each, types are inferred
that are as general as its two sides allow, and both sides are evaluated on random numbers first: a rule whose sides
differ is `unsound`, with the numbers as proof. Then the left side alone is put in an e-graph and saturated with the
equations of `rewrite/substitution_rules.py`; the rule is `derived` if every output of the right side is found in the
e-class of the left side's output.

A convolution's groups follow from its types, as TASO's do; an activation is an operator of its own.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

DEFAULT = Path("/work/shared/taso_rules.json")
#: Extents given to free dimensions, in order: different ones, so that no rule applies by coincidence.
EXTENTS = (2, 3, 5, 4, 6, 7, 1)
KERNEL = 3
#: Matches in one round from which a rule backs off.
MATCHES = 100
Reference = tuple[int, int]
Form = dict[str, int]
"""An extent as a sum of multiples of symbols (`""` is 1)."""


class Outside(Exception):
    """The rule needs what nestegg has no operator for, or its types cannot be inferred."""


# --- types: extents as linear forms, unified ------------------------------------------------------------------------


class Extents:
    """Extents of the tensors of a rule: linear forms over symbols, some of which unification has replaced."""

    def __init__(self) -> None:
        self.bound: dict[str, Form] = {}
        self.count = 0

    def fresh(self) -> Form:
        self.count += 1
        return {f"n{self.count}": 1}

    def resolve(self, form: Form) -> Form:
        out: Form = {}
        for symbol, k in form.items():
            known = self.resolve(self.bound[symbol]) if symbol in self.bound else {symbol: 1}
            for s, m in known.items():
                out[s] = out.get(s, 0) + k * m
        return {s: k for s, k in out.items() if k}

    def equate(self, a: Form, b: Form) -> None:
        """Make two forms equal. Of two sums, the summands are made equal one by one, in order."""
        a, b = self.resolve(a), self.resolve(b)
        if a == b:
            return
        for one, other in ((a, b), (b, a)):
            symbol = next((s for s, k in one.items() if s and k == 1 and len(one) == 1 and s not in other), None)
            if symbol is not None:
                self.bound[symbol] = other
                return
        rest_a = [(s, k) for s, k in a.items() if b.get(s) != k]
        rest_b = [(s, k) for s, k in b.items() if a.get(s) != k]
        if len(rest_a) != len(rest_b) or not rest_a or any(not s for s, _ in (*rest_a, *rest_b)):
            raise Outside("its types cannot be inferred")
        for (s, _), (t, _) in zip(rest_a, rest_b, strict=True):
            self.equate({s: 1}, {t: 1})

    def value(self, form: Form) -> int:
        symbols = sorted({s for n in range(1, self.count + 1) for s in self.resolve({f"n{n}": 1}) if s})
        size = {s: EXTENTS[k % len(EXTENTS)] for k, s in enumerate(symbols)}
        return sum(k * size.get(s, 1) for s, k in self.resolve(form).items())


Shape = tuple[Form, ...]


def _rank(rule: dict[str, Any]) -> int:
    operators = [o for side in ("src", "dst") for o in rule[side]]
    if any(o["op"] == "conv2d" for o in operators):
        return 4
    return max([o["params"]["num_dim"] for o in operators if o["op"] == "concat"], default=2)


class Types:
    """Shapes of the free variables and of the results of both sides."""

    def __init__(self, rule: dict[str, Any]) -> None:
        self.extents, self.rank = Extents(), _rank(rule)
        self.free: dict[int, Shape] = {}
        self.sides = {side: self._side(rule[side]) for side in ("src", "dst")}
        for o in rule["outputs"]:
            left = self.sides["src"][o["src_op"]][o["src_tensor"]]
            self._same(left, self.sides["dst"][o["dst_op"]][o["dst_tensor"]])

    def _side(self, operators: list[dict[str, Any]]) -> list[list[Shape]]:
        made: list[list[Shape]] = []
        for o in operators:
            inputs = [self._shape(r, made) for r in map(tuple, o["inputs"])]
            made.append(self._results(o, inputs, operators))
        return made

    def _shape(self, reference: Reference, made: list[list[Shape]]) -> Shape:
        i, t = reference
        if i >= 0:
            return made[i][t]
        return self.free.setdefault(i, tuple(self.extents.fresh() for _ in range(self.rank)))

    def _same(self, a: Shape, b: Shape, but: int = -1) -> None:
        if len(a) != len(b):
            raise Outside("its types cannot be inferred")
        for axis, (n, m) in enumerate(zip(a, b, strict=True)):
            if axis != but:
                self.extents.equate(n, m)

    def _results(self, o: dict[str, Any], inputs: list[Shape], side: list[dict[str, Any]]) -> list[Shape]:
        x, p = inputs[0], o["params"]
        match o["op"]:
            case "relu":
                return [x]
            case "ew_add" | "ew_mul":
                self._same(x, inputs[1])
                return [x]
            case "matmul":
                self.extents.equate(x[1], inputs[1][0])
                return [(x[0], inputs[1][1])]
            case "concat":
                self._same(x, inputs[1], but=p["axis"])
                joined: Form = dict(self.extents.resolve(x[p["axis"]]))
                for s, k in self.extents.resolve(inputs[1][p["axis"]]).items():
                    joined[s] = joined.get(s, 0) + k
                return [tuple(joined if k == p["axis"] else n for k, n in enumerate(x))]
            case "conv2d":
                return [self._convolved(x, inputs[1])]
            case "split":
                parts = [self.extents.fresh(), self.extents.fresh()]
                total = {s: 1 for part in parts for s in part}
                self.extents.equate(x[p["axis"]], total)
                return [tuple(part if k == p["axis"] else n for k, n in enumerate(x)) for part in parts]
        raise Outside(f"no operator {o['op']}")

    def _convolved(self, x: Shape, w: Shape) -> Shape:
        for n in w[2:]:
            self.extents.equate(n, {"": KERNEL})
        channels, wanted = self.extents.resolve(x[1]), self.extents.resolve(w[1])
        if set(channels.values()) == {2} or (len(channels) == 2 and set(wanted) < set(channels)):
            self._halve(channels)  # two groups, of equal width
            self._halve(self.extents.resolve(w[0]))
        else:
            self.extents.equate(channels, wanted)
        return (x[0], w[0], *x[2:])

    def _halve(self, sum_of_two: Form) -> None:
        if len(sum_of_two) == 2:
            first, second = sum_of_two
            self.extents.equate({first: 1}, {second: 1})


# --- both sides as graphs -----------------------------------------------------------------------------------------


def _value(builder: Any, made: list[list[Any]], free: dict[int, Any], reference: Reference) -> Any:
    return made[reference[0]][reference[1]] if reference[0] >= 0 else free[reference[0]]


def _relu(x: Any) -> Any:
    return x.builder.op("max", x, x.builder.full(x.shape, 0.0))


def _apply(builder: Any, o: dict[str, Any], xs: list[Any], results: list[tuple[int, ...]]) -> list[Any]:
    p = o["params"]
    match o["op"]:
        case "relu":
            return [_relu(xs[0])]
        case "ew_add":
            return [builder.op("add", *xs)]
        case "ew_mul":
            return [builder.op("mul", *xs)]
        case "concat":
            return [builder.op("concat", *xs, axis=p["axis"])]
        case "matmul":
            product = builder.op("dot", *xs, contract=((1,), (0,)), batch=((), ()))
            return [_relu(product) if p["activation"] == "relu" else product]
        case "conv2d":
            one = {"strides": (1, 1), "padding": ((1, 1), (1, 1)), "lhs_dilation": (1, 1), "rhs_dilation": (1, 1)}
            result = builder.op("conv", *xs, **one, groups=xs[0].shape[1] // xs[1].shape[1])
            return [_relu(result) if p["activation"] == "relu" else result]
    parts, at = [], 0
    for shape in results:
        start = tuple(at if k == p["axis"] else 0 for k in range(len(shape)))
        at += shape[p["axis"]]
        limit = tuple(at if k == p["axis"] else n for k, n in enumerate(shape))
        parts.append(builder.op("slice", xs[0], start=start, limit=limit, strides=(1,) * len(shape)))
    return parts


def graph_of(rule: dict[str, Any], side: str, types: Types) -> Any:
    """One side as a graph: inputs are the free variables in order, outputs as `outputs` says."""
    from nestegg.ir.graph import GraphBuilder
    from nestegg.ir.types import TensorType

    builder = GraphBuilder()

    def extents(shape: Shape) -> tuple[int, ...]:
        return tuple(map(types.extents.value, shape))

    free = {v: builder.input(TensorType(extents(types.free[v])), f"v{-v}") for v in sorted(types.free, reverse=True)}
    made: list[list[Any]] = []
    for o, results in zip(rule[side], types.sides[side], strict=True):
        xs = [_value(builder, made, free, tuple(r)) for r in o["inputs"]]
        made.append(_apply(builder, o, xs, [extents(r) for r in results]))
    return builder.finish([made[o[f"{side}_op"]][o[f"{side}_tensor"]] for o in rule["outputs"]])


# --- the verdict --------------------------------------------------------------------------------------------------


@dataclass
class Verdict:
    """What became of a rule. `status`: derived, not derived, unsound, outside."""

    number: int
    rule: str
    status: str
    detail: str = ""
    enodes: int = 0
    iterations: int = 0
    seconds: float = 0.0


def text(rule: dict[str, Any]) -> str:
    def shown(side: str, reference: Reference) -> str:
        if reference[0] < 0:
            return f"v{-reference[0]}"
        o = rule[side][reference[0]]
        inside, p = [shown(side, tuple(r)) for r in o["inputs"]], o["params"]
        forms: dict[str, Callable[[], str]] = {
            "ew_add": lambda: f"({inside[0]} + {inside[1]})",
            "ew_mul": lambda: f"({inside[0]} * {inside[1]})",
            "matmul": lambda: f"({inside[0]} @ {inside[1]})",
            "concat": lambda: f"[{', '.join(inside)}]{p['axis']}",
            "split": lambda: f"{inside[0]}.part{reference[1]}",
            "relu": lambda: f"relu({inside[0]})",
            "conv2d": lambda: f"conv({inside[0]}, {inside[1]})",
        }
        said = forms[o["op"]]()
        return f"relu({said})" if p.get("activation") == "relu" else said

    pairs = [
        f"{shown('src', (o['src_op'], o['src_tensor']))} -> {shown('dst', (o['dst_op'], o['dst_tensor']))}"
        for o in rule["outputs"]
    ]
    return "; ".join(pairs)


def counterexample(left: Any, right: Any) -> str:
    """Where the two graphs differ on random numbers, or "" if they do not."""
    from nestegg.ir.reference import evaluate

    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(t.shape).astype(np.float32) for t in left.input_types]
    for k, (a, b) in enumerate(zip(*(evaluate(g, inputs, double=True) for g in (left, right)), strict=True)):
        if a.shape != b.shape or not np.allclose(a, b, rtol=1e-9, atol=1e-9):
            at = np.unravel_index(int(np.argmax(np.abs(a - b))), a.shape) if a.shape == b.shape else ()
            return f"output {k} at {tuple(map(int, at))}: {a[at]:.6g} on the left, {b[at]:.6g} on the right"
    return ""


def found_in(egraph: Any, right: Any) -> bool:
    """Every output of the right side is a term of the e-class that the left side's output is in."""
    known = {(n.op, repr(n.attrs), n.args): c for c, e in enumerate(egraph.classes) for n in e.ops}
    inputs = {e.input: c for c, e in enumerate(egraph.classes) if e.input is not None}
    constants = {
        egraph.constants[e.constant].tobytes(): c for c, e in enumerate(egraph.classes) if e.constant is not None
    }
    place: list[int | None] = []
    for k, n in enumerate(right.nodes):
        if k in right.inputs:
            place.append(inputs.get(right.inputs.index(k)))
        elif k in right.constants:
            place.append(constants.get(right.constants[k].tobytes()))
        else:
            args = tuple(place[i] for i in n.inputs)
            place.append(known.get((n.op, repr(n.attrs), args)))
    return [place[o] for o in right.outputs] == list(egraph.outputs)


def judge(number: int, rule: dict[str, Any], rounds: int, nodes: int) -> Verdict:
    """Saturate a round at a time until the right side is found, or the limits are reached."""
    from nestegg.rewrite.graph_egraph import explore
    from nestegg.rewrite.saturate import Limits
    from nestegg.rewrite.substitution_rules import SUBSTITUTIONS

    begun = time.perf_counter()
    verdict = Verdict(number, text(rule), "not derived")
    try:
        types = Types(rule)
        left, right = graph_of(rule, "src", types), graph_of(rule, "dst", types)
    except Exception as e:
        verdict.status, verdict.detail = "outside", f"{type(e).__name__}: {e}"
        return verdict
    verdict.detail = counterexample(left, right)
    if verdict.detail:
        verdict.status = "unsound"
        return verdict
    for n in range(1, rounds + 1):
        egraph = explore(left, SUBSTITUTIONS, Limits(nodes=nodes, iterations=n, seconds=60.0, matches=MATCHES))
        verdict.enodes, verdict.iterations = egraph.enodes, n
        if found_in(egraph, right):
            verdict.status = "derived"
            break
        if egraph.report.stopped_by != "iterations":
            verdict.detail = f"stopped: {egraph.report.stopped_by}"
            break
    verdict.seconds = round(time.perf_counter() - begun, 3)
    return verdict


def main(
    file: Annotated[Path, typer.Argument(help="the rules as JSON")] = DEFAULT,
    only: Annotated[int | None, typer.Option(help="only the rule of this number")] = None,
    rounds: Annotated[int, typer.Option(help="rounds over the rules, at most")] = 8,
    nodes: Annotated[int, typer.Option(help="e-nodes at which saturation stops")] = 8_000,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")] = False,
) -> None:
    """Derive TASO's substitutions with nestegg's rules."""
    rules = json.loads(file.read_text())
    chosen = range(len(rules)) if only is None else [only]
    verdicts = []
    for k in chosen:
        verdicts.append(judge(k, rules[k], rounds, nodes))
        print(f"{verdicts[-1].number} {verdicts[-1].status} {verdicts[-1].seconds}", file=sys.stderr)
    counts = Counter(v.status for v in verdicts)
    if as_json:
        print(json.dumps({"counts": counts, "rules": [asdict(v) for v in verdicts]}))
        return
    for v in verdicts:
        if v.status != "derived" or only is not None:
            print(f"{v.number:4} {v.status:12} {v.rule}   {v.detail}")
    print(", ".join(f"{n} {status}" for status, n in counts.most_common()), f"of {len(verdicts)}")
    print(
        f"{sum(v.seconds for v in verdicts):.1f} s; at most {max(v.iterations for v in verdicts)} rounds, "
        f"{max(v.enodes for v in verdicts):,} e-nodes"
    )
    if counts["derived"] < len(verdicts):
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
