"""A report in words: the sentences and short forms that the terminal's table and the HTML page share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .extract.choose import SLACK
from .ir.expr import Apply, Cast, Const, IndexValue, Read, Scalar, Weighted, When
from .ir.loops import ACCUMULATOR, Lowered, StagedKernel
from .ir.scalars import scalar
from .report import ACCURACY_FACTOR

if TYPE_CHECKING:
    from .compiler import Compiled

Json = dict[str, Any]

#: Who chooses nests, in words.
WHO = {"roofline": "the roofline", "learned": "the learned model", "tuned": "measurement (nestegg tune)"}


def described(compiled: Compiled) -> Json:
    """The report as JSON, each kernel with its `domain` and what it `computes` besides."""
    found = dict(compiled.report().to_json())
    pairs = zip(found["kernels"], compiled.program.calls, strict=True)
    found["kernels"] = [k | {"domain": domain(c.kernel), "computes": computes(c.kernel)} for k, c in pairs]
    return found


def domain(kernel: Lowered) -> str:
    """`32x16 sum 784`: the extents of the results and of the reduction; of several stages, each in order."""
    if isinstance(kernel, StagedKernel):
        return "; ".join(domain(kernel.stages[n]) for n in kernel.sequences[0])
    results = "x".join(str(a.extent) for a in kernel.spatial) or "1"
    reduced = "x".join(str(a.extent) for a in kernel.reduce)
    return f"{results} {kernel.kind} {reduced}" if kernel.kind else results


def computes(kernel: Lowered) -> str:
    """`max((sum(x0 * x1) + x2), 0.0)`: the kernel's expression without addresses."""
    if isinstance(kernel, StagedKernel):
        first, results = len(kernel.inputs), kernel.sequences[0]
        text = "; ".join(f"x{first + n} = {computes(kernel.stages[n])}" for n in results[:-1])
        return f"{text}; {computes(kernel.stages[results[-1]])}"
    accumulated = "" if kernel.update is None else f"{kernel.kind}({_bare(_short(kernel.update, ''))})"
    return _bare(_short(kernel.epilogue, accumulated))


def _bare(text: str) -> str:
    """Without parentheses around the whole."""
    depth = 0
    for at, ch in enumerate(text):
        depth += (ch == "(") - (ch == ")")
        if depth == 0 and at < len(text) - 1:
            return text
    return text[1:-1] if text.startswith("(") else text


def _short(s: Scalar, accumulated: str) -> str:
    if isinstance(s, Read):
        return accumulated if s.input == ACCUMULATOR else f"x{s.input}"
    if isinstance(s, Const):
        return f"{s.value:g}" if isinstance(s.value, float) else str(s.value)
    if isinstance(s, IndexValue):
        return f"{s.index}"
    if isinstance(s, Cast):
        return f"{s.dtype}({_bare(_short(s.arg, accumulated))})"
    if isinstance(s, Weighted):
        return f"table * {_short(s.arg, accumulated)}"
    if isinstance(s, When):
        return f"({_short(s.then, accumulated)} or {_short(s.otherwise, accumulated)} outside)"
    if isinstance(s, Apply):
        args = [_short(a, accumulated) for a in s.args]
        infix = scalar(s.fn).infix
        return f"({args[0]} {infix} {args[1]})" if infix else f"{s.fn}({', '.join(map(_bare, args))})"
    return str(s)


def amount(n: int) -> str:
    """A count that may be astronomic: `2,976`, or `1.4e16`."""
    if n < 1_000_000:
        return f"{n:,}"
    digits = str(n)  # a float would overflow
    tenths = (int(digits[:3]) + 5) // 10
    power = len(digits) - 1
    if tenths == 100:
        tenths, power = 10, power + 1
    return f"{tenths // 10}.{tenths % 10}e{power}"


def size(n: int) -> str:
    """Bytes: `4.0 KiB`."""
    value, units = float(n), ["B", "KiB", "MiB", "GiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.0f} B" if units[0] == "B" else f"{value:.1f} {units[0]}"


def verification(r: Json) -> str:
    """How far the result is from float64, and how far it may be."""
    v = r["verify"]
    accuracy = r.get("accuracy")
    estimated = f", estimated {accuracy['estimate']:.2g}" if accuracy else ""
    gain = r["rounding_gain"]
    why = f": its algorithms may amplify rounding errors {gain:.1f} times" if gain > ACCURACY_FACTOR else ""
    return (
        f"largest relative error {v['max_rel_err']:.2g} against float64"
        f" (XLA's is {v['xla_rel_err']:.2g}, allowed is {v['bar']:.2g}{why}{estimated})"
    )


def extraction(r: Json) -> str:
    """The graph extraction's figures."""
    e = r["extraction"]
    state = "optimal" if e["optimal"] else f"gap {e['gap']:.2%}"
    searched, rounds = r["loops"]["kernels_searched"], e["rounds"]
    return (
        f"{e['method']}: cost {e['cost'] * 1e6:,.1f} us, bound {e['bound'] * 1e6:,.1f} us ({state});"
        f" {searched} kernels searched in {rounds} round{'s' if rounds > 1 else ''}"
    )


def fired(rules: list[Json]) -> list[Json]:
    """The rules that matched, the busiest first."""
    return sorted((r for r in rules if r["matches"]), key=lambda r: -r["matches"])


def accounted(r: Json) -> list[tuple[str, str]]:
    """What the table says under the kernels: a heading and a sentence each."""
    g, loops, memory = r["graph"], r["loops"], r["memory"]
    graph = f"graph {g['enodes']:,} e-nodes in {g['eclasses']:,} e-classes, {stopped(g['stopped_by'])}"
    schedules = f"loops {loops['enodes']:,} e-nodes, {stopped(loops['stopped_by'])}"
    lines = [
        ("e-graphs", f"{graph}, {g['seconds']:.2f} s; {schedules}, {loops['seconds']:.2f} s"),
        ("extraction", extraction(r)),
    ]
    for level, rules in (("graph rules", g["rules"]), ("loop rules", loops["rules"])):
        names = [f"{x['name']} {x['matches']:,}" for x in fired(rules)]
        lines.append((level, ", ".join(names) or "none fired"))
    if r.get("accuracy"):
        budget, estimate = r["accuracy"]["budget"], r["accuracy"]["estimate"]
        lines.append(("accuracy", f"relative error of {budget:.2g} allowed, {estimate:.2g} estimated"))
    arena, all_of_them = size(memory["peak"]), size(memory["sum_of_tensors"])
    lines.append(("memory", f"{arena} arena for {all_of_them} of temporaries"))
    lines.append(("schedules", chosen_by(r)))
    lines.append(("predicted", f"{r['predicted_us']:,.1f} us a run" + measured(r)))
    stages = ", ".join(f"{name} {s:.2f}" for name, s in r["seconds"].items())
    how = "loaded from the cache" if r["cache"]["hit"] else f"not from the cache: {r['cache']['why']}"
    lines.append(("compiled", f"in {r['compile_s']:.2f} s ({stages}); {how}"))
    return lines


def chosen_by(r: Json) -> str:
    """Who chose how many kernels' nests, and what that is expected to gain over the roofline alone."""
    s = r["schedules"]
    counts = ", ".join(f"{n} by {WHO[by]}" for by, n in s["chosen_by"].items() if n)
    return f"{counts or 'none'}; expected to run {s['gain']:.2f} times as fast as the roofline's"


def measured(r: Json) -> str:
    return f", measured {r['measured_us']:,.1f} us with its call" if "measured_us" in r else ""


def stopped(by: str) -> str:
    """Why saturation ended."""
    return "saturated" if by == "saturated" else f"stopped by the limit on {by}"


def left_open(r: Json) -> list[str]:
    """What better search could still find: limits that were hit, the gap, kernels known by a bound only."""
    out = []
    if r["graph"]["stopped_by"] != "saturated":
        why = stopped(r["graph"]["stopped_by"])
        out.append(f"The graph e-graph was {why}: more rewrites exist than were tried.")
    cut = [k["name"] for k in r["kernels"] if k["stopped_by"] != "saturated"]
    if cut:
        out.append(f"The schedules of {', '.join(cut)} were stopped by a limit: more exist than were tried.")
    if unusable := r["loops"]["kernels_without_schedule"]:
        out.append(f"{unusable} kernels were set aside: the limits were reached before a schedule of them was whole.")
    e = r["extraction"]
    if not e["optimal"]:
        out.append(f"Graph extraction ended without proof: a program up to {e['gap']:.2%} cheaper may exist.")
    out.append(
        "A kernel's schedule is the best that a beam search found under the cost model, not proved best."
    )
    out.append(
        f"A kernel that was never searched counted with {SLACK:g} times the lower bound of its cost: no"
        f" program set aside is better by more than {SLACK - 1:.0%} under the model."
    )
    if r["threads"] > 1:
        shared = sum(k["parallel"] for k in r["kernels"])
        out.append(
            f"{shared} of {len(r['kernels'])} kernels run on up to {r['threads']} threads; for the others, dividing the"
            " work would cost more than it saves, by the model."
        )
    if "measured_us" in r and r["predicted_us"]:
        ratio, predicted = r["measured_us"] / r["predicted_us"], f"{r['predicted_us']:,.1f} us"
        out.append(f"The model predicted {predicted}; a run, with its call, took {ratio:.2f} times that.")
    silent = [x["name"] for x in (*r["graph"]["rules"], *r["loops"]["rules"]) if not x["matches"]]
    if silent:
        out.append(f"{len(silent)} rules found nothing to rewrite: {', '.join(silent)}.")
    if not r["fallbacks"]:
        out.append("Nothing runs outside the compiled program (no fallbacks).")
    return out
