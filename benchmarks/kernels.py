"""Single kernels against their peers and against this machine's limits, all in one run.

    python benchmarks/kernels.py matmul [--sizes 256,512,1024 | 100x300x200,...] [--threads 1] [--json]
    python benchmarks/kernels.py int8 | bf16 [--sizes 256,512]
    python benchmarks/kernels.py product | conv | depthwise | memory [--only C2,C9]

`ratio` is the best peer's time over nestegg's (above 1: nestegg is faster). `% limit` is against the greater
of the time for the arithmetic at the best multiply-add rate of the run and the time to move the operands once
at the measured bandwidth of the smallest level that holds them. `kernel` is nestegg's machine code called in
a native loop, without Python, and its `kernel %` is of its fastest sample; peers and `nestegg` include their
Python call, and count by their medians.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from pinning import Pinned, openblas_kernels, pin

if TYPE_CHECKING:
    from harness import Plan, Timing
    from limits import Limits
    from peers import Case

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)

ALL = "jax,numpy,onnxruntime,openvino"
Threads = Annotated[int, typer.Option(help="threads, each bound to a core")]
Rounds = Annotated[int, typer.Option(help="samples a contestant")]
Gap = Annotated[float, typer.Option(help="microseconds of idleness before every call")]
Peers = Annotated[str, typer.Option(help="comma-separated")]
Only = Annotated[str, typer.Option(help="cases whose name contains one of these (comma-separated)")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")]
Markdown = Annotated[bool, typer.Option("--markdown", help="print a table for docs/results.md")]
Png = Annotated[Path | None, typer.Option("--plot", help="write a bar chart of % of the limit (PNG)")]
Sizes = Annotated[str, typer.Option(help="comma-separated: 512 or 100x300x200 (m x k x n)")]


@app.command()
def matmul(
    sizes: Sizes = "", threads: Threads = 1, rounds: Rounds = 15, gap_us: Gap = 0, peers: Peers = ALL,
    only: Only = "", as_json: Json = False, as_markdown: Markdown = False, plot: Png = None,
) -> None:  # fmt: skip
    """f32 matmul with constant weights: squares from 64 to 2048, BERT's shapes, odd shapes."""
    suite = Suite("matmul", threads, rounds, gap_us, peers, only)
    suite.run(lambda: _products("matmul", sizes), as_json, as_markdown, plot)


@app.command()
def int8(
    sizes: Sizes = "", threads: Threads = 1, rounds: Rounds = 15, gap_us: Gap = 0, peers: Peers = ALL,
    only: Only = "", as_json: Json = False, as_markdown: Markdown = False, plot: Png = None,
) -> None:  # fmt: skip
    """u8 x s8 matmul to int32 with constant weights: the shapes of `matmul`, against the int8 peak."""
    suite = Suite("int8", threads, rounds, gap_us, peers, only, peak="int8")
    suite.run(lambda: _products("int8", sizes), as_json, as_markdown, plot)


@app.command()
def bf16(
    sizes: Sizes = "", threads: Threads = 1, rounds: Rounds = 15, gap_us: Gap = 0, peers: Peers = ALL,
    only: Only = "", as_json: Json = False, as_markdown: Markdown = False, plot: Png = None,
) -> None:  # fmt: skip
    """bfloat16 matmul to float32 with constant weights: the shapes of `matmul`, against the bf16 peak."""
    suite = Suite("bf16", threads, rounds, gap_us, peers, only, peak="bf16")
    suite.run(lambda: _products("bf16", sizes), as_json, as_markdown, plot)


def _products(case: str, sizes: str) -> list[Callable[[], Case]]:
    import cases

    shapes = [_shape(s) for s in sizes.split(",")] if sizes else [
        *((n, n, n) for n in cases.SQUARES), *cases.BERT, *cases.ODD
    ]  # fmt: skip
    return [lambda s=s: getattr(cases, case)(*s) for s in shapes]


@app.command()
def product(
    threads: Threads = 1, rounds: Rounds = 15, gap_us: Gap = 0, peers: Peers = ALL, only: Only = "",
    as_json: Json = False, as_markdown: Markdown = False, plot: Png = None,
) -> None:  # fmt: skip
    """f32 matmul of two inputs, neither known before: the second as it is and transposed."""
    suite = Suite("product", threads, rounds, gap_us, peers, only)

    def build() -> list[Callable[[], Case]]:
        import cases

        return [lambda p=p, t=t: cases.product(*p, t) for p in cases.PRODUCTS for t in (False, True)]

    suite.run(build, as_json, as_markdown, plot)


@app.command()
def conv(
    threads: Threads = 1, rounds: Rounds = 15, gap_us: Gap = 0, peers: Peers = ALL, only: Only = "",
    direct: Annotated[bool, typer.Option("--direct", help="nestegg without Winograd's algorithm")] = False,
    as_json: Json = False, as_markdown: Markdown = False, plot: Png = None,
) -> None:  # fmt: skip
    """The 12 distinct convolutions of ResNet-18 with bias and relu, each contestant in its own layout."""
    suite = Suite("conv", threads, rounds, gap_us, peers, only)

    def build() -> list[Callable[[], Case]]:
        import cases

        options = {"rounding_gain": 1.0} if direct else {}
        return [lambda r=r: cases.convolution(*r, options=options) for r in cases.RESNET18]

    suite.run(build, as_json, as_markdown, plot)


@app.command()
def depthwise(
    threads: Threads = 1, rounds: Rounds = 15, gap_us: Gap = 0, peers: Peers = ALL, only: Only = "",
    as_json: Json = False, as_markdown: Markdown = False, plot: Png = None,
) -> None:  # fmt: skip
    """MobileNet-v1's depthwise convolutions with bias and relu, each contestant in its own layout."""
    suite = Suite("depthwise", threads, rounds, gap_us, peers, only)

    def build() -> list[Callable[[], Case]]:
        import cases

        return [lambda r=r: cases.depthwise(*r) for r in cases.MOBILENET]

    suite.run(build, as_json, as_markdown, plot)


@app.command()
def memory(
    threads: Threads = 1, rounds: Rounds = 15, gap_us: Gap = 0, peers: Peers = ALL, only: Only = "",
    as_json: Json = False, as_markdown: Markdown = False, plot: Png = None,
) -> None:  # fmt: skip
    """Elementwise chains, softmax, layer norm, gelu, reductions, transpose, in and out of cache."""
    suite = Suite("memory", threads, rounds, gap_us, peers, only)

    def build() -> list[Callable[[], Case]]:
        import cases

        return list(cases.MEMORY)

    suite.run(build, as_json, as_markdown, plot)


def _shape(text: str) -> tuple[int, int, int]:
    try:
        parts = [int(p) for p in text.split("x")]
    except ValueError:
        parts = []
    if len(parts) not in (1, 3) or min(parts) < 1:
        raise typer.BadParameter(f"{text!r}: write a size as 512 or as 100x300x200 (m x k x n)")
    return parts[0], parts[len(parts) // 2], parts[-1]


class Suite:
    """One run: pins the process, measures limits, runs the cases, reports."""

    def __init__(
        self, name: str, threads: int, rounds: int, gap_us: float, peers: str, only: str, peak: str = "f32"
    ) -> None:
        self.name, self.rounds, self.gap_us, self.kind = name, rounds, gap_us, peak
        self.pinned: Pinned = pin(threads)
        import harness
        import peers as makers

        self.h = harness
        self.peers = [p.strip() for p in peers.split(",") if p.strip()]
        unknown = [p for p in self.peers if p not in makers.PEERS]
        if unknown:
            raise typer.BadParameter(
                f"peer {unknown[0]!r} does not exist; choose from {', '.join(makers.PEERS)}"
            )
        self.only = [o.strip() for o in only.split(",") if o.strip()]
        self.plan: Plan = harness.Plan(rounds=rounds, gap=gap_us * 1e-6)

    def run(
        self,
        build: Callable[[], list[Callable[[], Case]]],
        as_json: bool,
        as_markdown: bool,
        plot: Path | None,
    ) -> None:
        import limits as limits_of

        self.limits: Limits = limits_of.measure(self.pinned)
        if self.kind not in self.limits.peaks:
            raise typer.BadParameter(f"this machine has no {self.kind} instruction whose peak is known")
        self.peak = self.limits.peaks[self.kind] * 1e9
        timed = []
        for make in build():
            case = make()
            if self.only and not any(o in case.name for o in self.only):
                continue
            timed.append((case, self._case(case)))
        report = self._report([self._result(case, timings) for case, timings in timed])
        if plot is not None:
            self._plot(plot, report)
        if as_json:
            print(json.dumps(report))
        elif as_markdown:
            print(self.h.markdown(*self._table(report)))
        else:
            self.h.show(*self._table(report))

    def _case(self, case: Case) -> list[Timing]:
        import peers as makers

        progress = _progress(case.name)
        made = makers.contestants(case, ["nestegg", *self.peers], self.pinned.threads)
        made.append(_peak_contestant(self.kind))
        timings = self.h.run(made, case.reference, self.plan, case.tolerance, progress)
        progress("")
        best = next(t.best for t in timings if t.column == PEAK)
        self.peak = max(self.peak, self.pinned.threads * PEAK_OPERATIONS / best)
        return timings

    def _result(self, case: Case, timings: list[Timing]) -> dict[str, Any]:
        h = self.h
        columns = ["nestegg", *self.peers]
        best = {c: t for c in (*columns, "nestegg call", "nestegg kernel") if (t := h.best_of(timings, c))}
        rival = h.best_peer(timings, "nestegg", self.peers)
        mine, kernel = best["nestegg"], best["nestegg kernel"]
        limit = self._limit_seconds(case)

        def rate(t: Timing | None) -> float | None:
            return None if t is None or not t.times else round(case.flops / t.median / 1e9, 2)

        def share(t: Timing, seconds: float) -> float | None:
            return round(100 * limit / seconds, 1) if t.times else None

        def of_peak(t: Timing, seconds: float) -> float | None:
            return round(100 * case.flops / seconds / self.peak, 1) if t.times else None

        return {
            "name": case.name,
            "gflops": {c: rate(best.get(c)) for c in columns},
            "ratio_best_peer": round(h.ratio(rival, mine), 3) if rival and mine.times else None,
            "ratio_of_minima": round(rival.best / mine.best, 3) if rival and mine.times else None,
            "best_peer": str(rival) if rival else None,
            "percent_peak": of_peak(mine, mine.median),
            "percent_limit": share(mine, mine.median),
            "kernel": {
                "gflops": rate(kernel),
                "percent_peak": of_peak(kernel, kernel.best),
                "percent_limit": share(kernel, kernel.best),
            },
            "gbytes_per_s": {
                c: round((case.read + case.written) / t.median / 1e9, 2) for c, t in best.items() if t.times
            },
            "us": {c: round(t.median * 1e6, 3) for c, t in best.items() if t.times},
            "min_us": {c: round(t.best * 1e6, 3) for c, t in best.items() if t.times},
            "level": self.limits.level(int(case.read + case.written)),
            "limit_us": round(limit * 1e6, 3),
            "compile_s": round(mine.setup_s, 3),
            "variants": {str(t): round(t.median * 1e6, 3) for t in timings if t.times and t.column != PEAK},
            "errors": {str(t): t.error for t in timings if t.error},
            "disturbed": {str(t): t.disturbed for t in timings if t.disturbed},
            "max_rel_err": {c: t.rel_err for c, t in best.items() if t.rel_err == t.rel_err},
        }

    def _limit_seconds(self, case: Case) -> float:
        """The time that neither arithmetic nor the operands' movement can go below."""
        level = self.limits.level(int(case.read + case.written))
        moved = (case.read + case.written) / self.limits.mixed_bandwidth(case.read, case.written, level)
        if self.name == "memory":
            return moved
        return max(case.flops / self.peak, moved if level != "L1" else 0.0)

    def _report(self, results: list[dict[str, Any]]) -> dict[str, Any]:
        ratios = [r["ratio_best_peer"] for r in results if r["ratio_best_peer"]]
        peaks = [r["percent_peak"] for r in results if r["percent_peak"]]
        limits = [r["percent_limit"] for r in results if r["percent_limit"]]
        import statistics

        return {
            "suite": self.name,
            "command": " ".join(["python", "benchmarks/kernels.py", *sys.argv[1:]]),
            "machine": str(self.pinned),
            "threads": self.pinned.threads,
            "gap_us": self.gap_us,
            "clock_ghz": round(self.limits.clock_ghz, 3),
            "peak_gflops": round(self.peak / 1e9, 1),
            "peaks": {k: round(v, 1) for k, v in self.limits.peaks.items()},
            "bandwidth": {
                k: {n: round(v, 1) for n, v in d.items()} for k, d in self.limits.bandwidth.items()
            },
            "openblas": openblas_kernels(),
            "versions": self.h.versions("numpy", "jax", "onnxruntime", "openvino", "llvmlite"),
            "kernels": results,
            "geomean_ratio": round(self.h.geomean(ratios), 3) if ratios else None,
            "median_percent_peak": round(statistics.median(peaks), 1) if peaks else None,
            "min_percent_peak": min(peaks, default=None),
            "median_percent_limit": round(statistics.median(limits), 1) if limits else None,
            "failed": sum(bool(r["gflops"]["nestegg"] is None) for r in results),
        }

    def _table(self, report: dict[str, Any]) -> tuple[str, list[str], list[list[str]], list[str]]:
        """Title, header, rows, notes. The memory suite counts bytes, the others operations."""
        in_bytes = self.name == "memory"
        unit = "GB/s" if in_bytes else "GFLOP/s"
        key = "gbytes_per_s" if in_bytes else "gflops"
        header = [
            self.name,
            "nestegg",
            "kernel",
            *self.peers,
            "ratio",
            "of minima",
            "% limit",
            "kernel %",
            "us",
            "level",
        ]
        rows = []
        for r in report["kernels"]:
            kernel = r["gbytes_per_s"].get("nestegg kernel") if in_bytes else r["kernel"]["gflops"]
            rates = [r[key].get("nestegg"), kernel, *(r[key].get(p) for p in self.peers)]
            shares = [r["percent_limit"], r["kernel"]["percent_limit"]]
            rows.append([
                r["name"],
                *(_number(x, "failed" if k < 2 else "-") for k, x in enumerate(rates)),
                _number(r["ratio_best_peer"], digits=2), _number(r["ratio_of_minima"], digits=2),
                *map(_number, shares), _number(r["us"].get("nestegg")), r["level"],
            ])  # fmt: skip
        geomean, median = _number(report["geomean_ratio"], digits=2), _number(report["median_percent_limit"])
        rows.append(["geomean, median", *[""] * (2 + len(self.peers)), geomean, "", median, "", "", ""])
        return f"{self.name}: {unit}", header, rows, self._notes(report)

    def _notes(self, report: dict[str, Any]) -> list[str]:
        bandwidth = "; ".join(
            f"{level} " + ", ".join(f"{kind} {rate:.0f}" for kind, rate in rates.items())
            for level, rates in report["bandwidth"].items()
        )
        notes = [
            f"`{report['command']}`",
            f"{report['machine']} at {report['clock_ghz']:.2f} GHz; multiply-add peaks in G/s: "
            + ", ".join(f"{k} {v:.0f}" for k, v in report["peaks"].items()),
            f"bandwidth GB/s: {bandwidth}",
            f"OpenBLAS kernels: {report['openblas']}; "
            + ", ".join(f"{k} {v}" for k, v in report["versions"].items()),
        ]
        for r in report["kernels"]:
            notes += [f"{r['name']}: {who} failed: {why}" for who, why in r["errors"].items()]
            lost = sum(r["disturbed"].values())
            if lost:
                notes.append(f"{r['name']}: {lost} samples disturbed by other processes")
        return notes

    def _plot(self, path: Path, report: dict[str, Any]) -> None:
        names = [r["name"] for r in report["kernels"]]
        nan = float("nan")
        series = {
            c: [100 * r["limit_us"] / r["us"][c] if c in r["us"] else nan for r in report["kernels"]]
            for c in ("nestegg", *self.peers)
        }
        series = {c: v for c, v in series.items() if any(x == x for x in v)}
        self.h.bars(
            path, f"{self.name}: {report['machine']}", "% of the machine's limit", names, series, 100.0
        )


def _number(x: float | None, missing: str = "-", digits: int = 1) -> str:
    return missing if x is None else f"{x:.{digits}f}"


def _progress(name: str) -> Callable[[str], None]:
    if not sys.stderr.isatty():
        return lambda message: None

    def tell(message: str) -> None:
        print(f"\r\033[K{name}: {message}" if message else "\r\033[K", end="", file=sys.stderr, flush=True)

    return tell


PEAK = "peak"
PEAK_ROUNDS = 4096
PEAK_OPERATIONS = 0.0


def _peak_contestant(kind: str) -> Any:
    """The multiply-add kernel on one core as a contestant: the best it reaches in the run is the peak."""
    global PEAK_OPERATIONS
    from harness import Contestant
    from limits import ACCUMULATORS, aligned, peak_kernels

    operations, run = peak_kernels()[kind]
    PEAK_OPERATIONS = operations * PEAK_ROUNDS
    buffer = aligned(ACCUMULATORS * 64)

    def call() -> None:
        run(buffer.ctypes.data, PEAK_ROUNDS)

    return Contestant(PEAK, "", call, None)


def main(arguments: Sequence[str] | None = None) -> None:
    app(args=list(arguments) if arguments is not None else None)


if __name__ == "__main__":
    main()
