"""The pipeline: a JAX function or an ONNX file to a callable, through both e-graphs.

    import -> graph e-graph -> graph extraction (which searches loop e-graphs of the kernels it needs) -> LLVM -> call

Every stage's result is kept on `Compiled` and can be written out (`dump_to`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, overload

import numpy as np

from .arguments import as_array, is_jax
from .cache import Cache
from .codegen.pool import MAX_THREADS
from .codegen.program import Buffer, ConstantBlock, Executable, KernelCall, MachineCode, Program
from .costmodel.log import LogError, default_log
from .costmodel.pick import Tuned
from .costmodel.searchers import Searchers, kernel_search
from .extract.choose import GraphChoice, Step, choose
from .extract.constants import constant_values
from .extract.search import LEARNED, ROOFLINE, KernelSearch
from .ir.calibration import Ranges
from .ir.compose import identity
from .ir.errors import CalibrationError, CallError, ImportFailure, NesteggError, RuleError, UnknownNameError
from .ir.garbage import no_collection
from .ir.graph import Graph
from .ir.imported import ImportedProgram
from .ir.intrinsic import Intrinsic
from .ir.loops import lower
from .ir.quantization import QUANTIZED
from .ir.reference import evaluate, fold, xla
from .ir.target import Target, available_cpus, require_runnable
from .ir.target import target as target_named
from .ir.types import DTYPES, TensorType
from .report import Accuracy, Report, Verification, found_by
from .rewrite.fusion_rules import KernelRule
from .rewrite.graph_egraph import GRAPH_LIMITS, GraphEGraph, build
from .rewrite.graph_rules import graph_rules
from .rewrite.loop_egraph import LOOP_LIMITS
from .rewrite.loop_language import LoopRule
from .rewrite.loop_rules import LOOP_RULES
from .rewrite.quantization_rules import quantization_rules
from .rewrite.rounding import gain_of
from .rewrite.rule import GraphRule, load_rules
from .rewrite.saturate import Limits
from .rewrite.winograd import ROUNDING_GAIN
from .stored import ProgramStore, ScheduleStore, context
from .stored_partition import PartitionStore
from .vta.network import beside_the_cpu
from .vta.partition import Accelerator, partition

if TYPE_CHECKING:
    from .partitioned import Partitioned

Progress = Callable[[str], None]

#: The target that is a CPU and an accelerator, and when saturation with both their kernels stops.
VTA = "vta"
VTA_LIMITS = replace(GRAPH_LIMITS, seconds=3 * GRAPH_LIMITS.seconds)


@dataclass(frozen=True)
class Options:
    """How to compile.

    target: `cpu` (this machine), `vta` (this machine with an accelerator), or the name of a target. threads: how many
    the program may run on; by default one for each CPU that this process may use. rules: rules besides the shipped
    ones, or files of them. graph_limits: when graph saturation stops. loop_limits: when saturation of a kernel's
    schedules does, of which then the most promising are there. extraction: `ilp` or `greedy`. time_limit: seconds for
    graph extraction.
    rounding_gain: how much a shipped rule's algorithm may amplify rounding errors (`GraphRule.gain`). searchers:
    processes that help to search kernels' schedules; by default one for each further CPU that this process may use.
    What is found does not depend on them.
    """

    target: str = "cpu"
    threads: int | None = None
    rules: tuple[GraphRule | LoopRule | tuple[GraphRule, GraphRule] | str | Path, ...] = ()
    graph_limits: Limits = GRAPH_LIMITS
    loop_limits: Limits = LOOP_LIMITS
    extraction: str = "ilp"
    time_limit: float = 6.0
    cache: bool = True
    cost_model: str = LEARNED
    log: str | Path | None = None
    accuracy_budget: float | None = None
    ranges: Ranges | str | Path | None = None
    scales: str = "any"
    rounding_gain: float = ROUNDING_GAIN
    searchers: int | None = None

    @property
    def calibration(self) -> Ranges | None:
        """The ranges, if lossy rules may be used. Raises `NesteggError` if budget and ranges do not come together."""
        if self.accuracy_budget is None:
            if self.ranges is not None:
                raise CalibrationError("ranges are of use with an accuracy_budget only: give the error you accept")
            return None
        if not (math.isfinite(self.accuracy_budget) and self.accuracy_budget >= 0):
            raise CalibrationError(f"accuracy_budget={self.accuracy_budget}: give a relative error of 0 or more")
        if self.ranges is None:
            raise CalibrationError("an accuracy_budget needs ranges: measure them with `nestegg calibrate`")
        return self.ranges if isinstance(self.ranges, Ranges) else Ranges.load(self.ranges)

    @property
    def workers(self) -> int:
        """Threads that the program may run on. Raises `NesteggError` if `threads` is out of range."""
        if self.threads is None:
            return min(available_cpus(), MAX_THREADS)
        if not 1 <= self.threads <= MAX_THREADS:
            raise NesteggError(f"threads={self.threads}: give 1 to {MAX_THREADS}")
        return self.threads


def import_program(source: Any, *example_args: Any, shapes: Any = None, constants: Any = None) -> ImportedProgram:
    """The graph of a JAX function, an `.onnx` file, an ONNX model, or `zoo:NAME`.

    For ONNX, `shapes` gives open dimensions and `constants` fixes inputs, both by name (see `from_onnx`).
    """
    if isinstance(source, ImportedProgram):
        return source
    named = isinstance(source, (str, Path))
    of_zoo = named and str(source).startswith("zoo:")
    if hasattr(source, "SerializeToString") or (named and not of_zoo):
        from .ir.onnx_frontend import from_onnx

        return from_onnx(source, shapes, constants)
    if shapes or constants:
        what = f"{source} is" if of_zoo else "this model is"
        raise ImportFailure(f"shapes (--shape) and constants are for ONNX models, {what} none: leave them out")
    if of_zoo:
        from .ir import zoo
        from .ir.jax_frontend import from_jax

        fn, args = zoo.jax_model(str(source)[4:])
        return from_jax(fn, *args)
    if callable(source):
        from .ir.jax_frontend import from_jax

        return from_jax(source, *example_args)
    raise ImportFailure(f"cannot optimize a {type(source).__name__}: give a JAX function, an .onnx file or zoo:NAME")


def random_inputs(graph: Graph, seed: int = 0) -> list[np.ndarray]:
    """Inputs of the right types: normal deviates for floats, small integers otherwise."""
    rng = np.random.default_rng(seed)

    def draw(t: TensorType) -> np.ndarray:
        kind = DTYPES[t.dtype].kind
        if kind == "float":
            return rng.standard_normal(t.shape).astype(DTYPES[t.dtype].numpy)
        return rng.integers(0, 2 if kind == "bool" else 8, t.shape).astype(DTYPES[t.dtype].numpy)

    return [draw(t) for t in graph.input_types]


class Compiled:
    """An optimized program. Call it like the original, from any number of threads.

    graph: the imported graph. program: the kernels with their nests and buffers (prints as text). found: figures of
    the e-graphs and the extraction (`report`); texts: both as text. cached: whether it was loaded from the cache, and
    if not why. Not to be built directly: see `optimize`.
    """

    def __init__(
        self,
        imported: ImportedProgram,
        program: Program,
        found: dict[str, Any],
        texts: dict[str, str],
        seconds: dict[str, float],
        cached: dict[str, Any],
        code: MachineCode | None = None,
    ) -> None:
        self.imported, self.graph, self.program = imported, imported.graph, program
        self.found, self.texts, self.seconds, self.cached = found, texts, seconds, cached
        self._takes_arrays, self._returns = imported.takes_arrays, imported.returns
        self._jax_function: Callable[..., Any] | None = None
        self._verified: Verification | None = None
        begun = time.perf_counter()
        graph = imported.graph
        bare = self._returns == "array"
        self.executable = Executable(program, graph.input_types, graph.output_types, bare, code)
        self.seconds["codegen"] = time.perf_counter() - begun

    @property
    def accuracy(self) -> Accuracy | None:
        """What lossy rules were allowed and are estimated to cause; None for a program compiled without a budget."""
        return None if self.found["accuracy"] is None else Accuracy(**self.found["accuracy"])

    @property
    def rounding_gain(self) -> float:
        """How much the algorithms of the program may amplify rounding errors, by their own statement; 1: not at all."""
        return max((gain_of(call.kernel) for call in self.program.calls), default=1.0)

    @property
    def compile_s(self) -> float:
        """Seconds from the imported graph to machine code."""
        return sum(self.seconds.values())

    def __call__(self, *args: Any) -> Any:
        """Run; results are new NumPy arrays. If an argument is a JAX array, or traced, this is `as_jax()(*args)`.

        Arguments may also be of any library that exports DLPack; those that are contiguous are not copied. Raises
        `CallError` if they differ in number, structure, shape or dtype from the example's.
        """
        if self._takes_arrays:
            results = self.executable.entry.call(*args)
            if results is not None:
                return self.imported.unflatten(results) if self._returns == "tree" else results
        return self._converting(args)

    def __reduce__(self) -> NoReturn:
        raise CallError(
            "a compiled program cannot be pickled or copied, its machine code belongs to this process: optimize the "
            "function there again, which loads it from the cache"
        )

    def _converting(self, args: tuple[Any, ...]) -> Any:
        """A call whose arguments are not yet the arrays that the entry takes."""
        leaves = self.imported.flatten(*args)
        if any(map(is_jax, leaves)):
            return self.as_jax()(*args)
        results = self.executable.entry.call(*self._arrays(leaves))
        return self.imported.unflatten([results] if self._returns == "array" else results)

    def _arrays(self, leaves: Sequence[Any]) -> list[np.ndarray]:
        names, types = self.imported.input_names, self.graph.input_types
        return [
            as_array(leaf, want, f"argument {k} ({name})")
            for k, (leaf, want, name) in enumerate(zip(leaves, types, names, strict=True))
        ]

    def as_jax(self) -> Callable[..., Any]:
        """The program as a JAX function, for use inside `jax.jit`, `lax.scan`, `vmap`, `grad` and so on, on CPU.

        XLA calls the machine code directly, on its own buffers: nothing is copied. Under `vmap` the program runs once
        for each element, in sequence. Derivatives (reverse mode) are JAX's of the function that was optimized: the
        forward pass is this program, the backward pass is not. A program that was not a JAX function has none: an
        `UnsupportedError` says so; another says so if a 64-bit type needs `jax_enable_x64`.
        """
        from .jax_function import jax_function

        if self._jax_function is None:
            self._jax_function = jax_function(self.imported, self.executable)
        return self._jax_function

    def example_inputs(self, seed: int = 0) -> list[np.ndarray]:
        """Random inputs of the right types: normal for floats, small integers otherwise."""
        return random_inputs(self.graph, seed)

    def verify(self, *args: Any, seed: int = 0) -> Verification:
        """Compare with the graph in float64, beside XLA in the graph's own precision (on `args`, or random inputs).

        A program with an accuracy budget is held against that instead of XLA.
        """
        inputs = self._arrays(self.imported.flatten(*args)) if args else self.example_inputs(seed)
        outputs = [np.empty(t.shape, DTYPES[t.dtype].numpy) for t in self.graph.output_types]
        self.executable.run(inputs, outputs)
        exact = evaluate(self.graph, inputs, double=True)
        peer = xla(self.graph)(*inputs)
        self._verified = Verification.of(outputs, peer, exact, self.accuracy, self.rounding_gain)
        return self._verified

    def report(self) -> Report:
        """What was rewritten, chosen and predicted; with the last verification."""
        return Report.of(self, self._verified)

    def dump_to(self, folder: str | Path) -> None:
        """Write every stage: graph.txt, egraph.txt, chosen.txt, kernels.txt, module.ll, module.s, module.o."""
        from .codegen.jit import assembly

        where = Path(folder)
        where.mkdir(parents=True, exist_ok=True)
        (where / "graph.txt").write_text(str(self.graph) + "\n")
        for name, text in self.texts.items():
            (where / name).write_text(text + "\n")
        (where / "kernels.txt").write_text(str(self.program) + "\n")
        (where / "module.ll").write_text(self.program.llvm)
        (where / "module.s").write_text(assembly(self.program.llvm, self.program.target))
        (where / "module.o").write_bytes(self.executable.code.object)


def _egraph_text(egraph: GraphEGraph) -> str:
    lines = []
    for k, c in enumerate(egraph.classes):
        what = " const" if c.const else ""
        lines.append(f"c{k}: {c.type}{what}")
        if c.input is not None:
            lines.append(f"  input {c.input}")
        if c.constant is not None:
            lines.append(f"  constant {c.constant}")
        lines += [f"  {n.op}({', '.join(f'c{a}' for a in n.args)}; {n.attrs!r})" for n in c.ops]
        lines += [f"  call({', '.join(f'c{a}' for a in n.args)}): {n.kernel.expr}" for n in c.calls]
    return "\n".join(lines)


def _chosen_text(choice: GraphChoice) -> str:
    lines = []
    for s in choice.steps:
        args = ", ".join(f"c{a}" for a in s.args)
        cost = "alias" if s.nest is None else f"{s.seconds * 1e6:.2f} us"
        lines.append(f"c{s.result} = ({args})   {cost}")
        lines += [f"    {line}" for line in str(s.kernel).splitlines()]
    return "\n".join(lines)


@overload
def optimize(source: Any, *example_args: Any, target: Literal["vta"], **options: Any) -> Partitioned: ...
@overload
def optimize(source: Any, *example_args: Any, target: Literal["cpu"] = "cpu", **options: Any) -> Compiled: ...
@overload
def optimize(source: Any, *example_args: Any, target: str, **options: Any) -> Any: ...
def optimize(
    source: Any,
    *example_args: Any,
    target: str = "cpu",
    threads: int | None = None,
    rules: Sequence[GraphRule | LoopRule | tuple[GraphRule, GraphRule] | str | Path] | str | Path = (),
    cost_model: str = LEARNED,
    log: str | Path | None = None,
    options: Options | None = None,
    accuracy_budget: float | None = None,
    ranges: Ranges | str | Path | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    constants: Mapping[str, np.ndarray] | None = None,
    cache: bool = True,
    progress: Progress = lambda message: None,
    accelerator: Accelerator | None = None,
) -> Compiled | Partitioned:
    """Optimize a JAX function (with example arguments), an `.onnx` file, or `zoo:NAME` into a `Compiled` program.

    With an `accuracy_budget` (a relative error) and the `ranges` that `calibrate` measured, parts of the program are
    computed in small integers where that is faster, as far as their estimated error allows.

    With `target="vta"` the result is a `Partitioned` program: each kernel runs on this CPU or on the VTA `accelerator`
    (in its simulator), whichever is predicted to be faster, with what it costs to move tensors.

    Of an ONNX model, `shapes` gives open dimensions of inputs by name, and `constants` fixes inputs to arrays. A
    program that was compiled before is loaded from disk, unless `cache` is false.

    Raises `NesteggError` (a subclass that says where and what to do) for what cannot be imported or compiled.
    """
    given = (rules,) if isinstance(rules, (str, Path)) else tuple(rules)
    chosen = options or Options(
        target, threads, given, cache=cache, cost_model=cost_model, log=log,
        accuracy_budget=accuracy_budget, ranges=ranges,
    )  # fmt: skip
    progress("importing")
    imported = import_program(source, *example_args, shapes=shapes, constants=constants)
    if chosen.target == VTA:
        return compile_partitioned(imported, chosen, accelerator, progress)
    if accelerator is not None:
        raise NesteggError(f"accelerator is of use with target={VTA!r} only, not {chosen.target!r}")
    return compile_graph(imported, chosen, progress)


def compile_graph(imported: ImportedProgram, options: Options, progress: Progress = lambda m: None) -> Compiled:
    """From an imported graph to a compiled program."""
    with no_collection():
        return _loaded_or_compiled(imported, options, progress)


def _loaded_or_compiled(imported: ImportedProgram, options: Options, progress: Progress) -> Compiled:
    machine = require_runnable(target_named(options.target))
    options = replace(options, ranges=options.calibration)  # as what stands in the file
    if isinstance(options.ranges, Ranges):
        options.ranges.require_of(imported.graph)
    extra = list(_load(options.rules))
    mine = [r for r in extra if isinstance(r, GraphRule | KernelRule)]
    loops = [r for r in extra if isinstance(r, LoopRule)]
    tuned = _tuned(options, machine)
    if not options.cache:
        return _compile(imported, options, machine, mine, loops, progress, None, tuned, "it was not asked")
    begun = time.perf_counter()
    progress("looking in the cache")
    where = context(machine, options.workers, _deciding(options), mine, loops, tuned.state if tuned else "")
    programs = ProgramStore(Cache(), imported.graph, where)
    stored = programs.get()
    if stored is None:
        schedules = ScheduleStore(programs.cache, where)
        why = programs.why_missing()
        compiled = _compile(imported, options, machine, mine, loops, progress, schedules, tuned, why)
        programs.put(compiled.program, compiled.executable.code, compiled.found, compiled.texts)
        return compiled
    seconds = {"cache": time.perf_counter() - begun}
    cached = {"hit": True, "why": "", "entry": programs.name}
    return Compiled(imported, stored.program, stored.found, stored.texts, seconds, cached, stored.machine_code)


def _deciding(options: Options) -> dict[str, Any]:
    """The options that have no part of their own in the cache's context."""
    apart = ("target", "threads", "rules", "cache", "log", "searchers")
    return {k: v for k, v in vars(options).items() if k not in apart}


def _compile(
    imported: ImportedProgram,
    options: Options,
    machine: Target,
    mine: Sequence[GraphRule | KernelRule],
    loops: Sequence[LoopRule],
    progress: Progress,
    schedules: ScheduleStore | None,
    tuned: Tuned | None,
    why: str,
) -> Compiled:
    ranges = options.calibration
    seconds: dict[str, float] = {}
    begun = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal begun
        seconds[stage] = time.perf_counter() - begun
        begun = time.perf_counter()

    progress("saturating the graph e-graph")
    egraph = _graph_egraph(imported.graph, options, machine, mine)
    lap("graph saturation")
    with _searchers(options, machine, loops) as helpers:
        search = _kernel_search(options, machine, loops, progress, schedules, tuned, helpers)
        budget = _loss_budget(options)
        choice = choose(egraph, search, method=options.extraction, time_limit=options.time_limit, budget=budget)
        lap("extraction and scheduling")
    progress("folding constants")
    program = plan_program(egraph, choice.steps, search, machine, options.workers)
    lap("constants")
    progress("generating machine code")
    accuracy = None
    if ranges is not None:
        accuracy = Accuracy(options.accuracy_budget or 0.0, ranges.peak * math.sqrt(choice.loss))
    found = found_by(imported.graph, egraph, choice, program, search, accuracy)
    texts = {"egraph.txt": _egraph_text(egraph), "chosen.txt": _chosen_text(choice)}
    return Compiled(imported, program, found, texts, seconds, {"hit": False, "why": why, "entry": None})


def _graph_egraph(
    graph: Graph, options: Options, machine: Target, mine: Sequence[GraphRule | KernelRule]
) -> GraphEGraph:
    """All programs of a graph by the shipped rules and the user's, integers among them if there are ranges."""
    ranges = options.calibration
    integers = ranges is not None or not QUANTIZED.isdisjoint(graph.operator_counts)
    # Power-of-two scales make signed bytes, on which the CPU's intrinsics gain nothing.
    intrinsics = _useful(machine, graph, ranges is not None and options.target != VTA)
    shipped = graph_rules(machine.lanes(), intrinsics, integers, options.rounding_gain, options.workers)
    if options.target == VTA:
        shipped = beside_the_cpu(shipped)
    lossy = quantization_rules(options.scales) if ranges is not None else ()
    return build(graph, [*mine, *lossy, *shipped], options.graph_limits, ranges)


def _kernel_search(
    options: Options,
    machine: Target,
    loops: Sequence[LoopRule],
    progress: Progress,
    schedules: ScheduleStore | None = None,
    tuned: Tuned | None = None,
    helpers: Searchers | None = None,
) -> KernelSearch:
    return kernel_search(
        machine,
        options.workers,
        options.cost_model,
        rules=[*LOOP_RULES, *loops],
        limits=options.loop_limits,
        progress=progress,
        store=schedules,
        measured=tuned,
        helpers=helpers,
    )


def _searchers(options: Options, machine: Target, loops: Sequence[LoopRule]) -> Searchers:
    """Processes that search schedules too, with the shipped rules and the default limits; with others, none."""
    usual = not loops and options.loop_limits == LOOP_LIMITS
    return Searchers(machine, options.workers, options.cost_model, options.searchers if usual else 0)


def _loss_budget(options: Options) -> float | None:
    """What the losses of the chosen kernels may sum to."""
    ranges = options.calibration
    return None if ranges is None else ((options.accuracy_budget or 0.0) / ranges.peak) ** 2


def compile_partitioned(
    imported: ImportedProgram,
    options: Options,
    accelerator: Accelerator | None = None,
    progress: Progress = lambda m: None,
) -> Partitioned:
    """From an imported graph to a program for this CPU and a VTA. Its scales are powers of two, since the accelerator
    rescales by shifts."""
    from .partitioned import Partitioned

    machine = require_runnable(target_named("cpu"))
    options = replace(options, target=VTA, scales="power-of-two", ranges=options.calibration)
    if options.graph_limits == GRAPH_LIMITS:
        options = replace(options, graph_limits=VTA_LIMITS)
    chosen, ranges = accelerator or Accelerator(), options.calibration
    if ranges is not None:
        ranges.require_of(imported.graph)
    extra = list(_load(options.rules))
    mine = [r for r in extra if isinstance(r, GraphRule | KernelRule)]
    loops = [r for r in extra if isinstance(r, LoopRule)]
    tuned, begun = _tuned(options, machine), time.perf_counter()
    where = context(machine, options.workers, _deciding(options), mine, loops, tuned.state if tuned else "")
    kept = PartitionStore(Cache(), imported.graph, where, chosen) if options.cache else None
    schedules = ScheduleStore(kept.cache, where) if kept else None
    search = _kernel_search(options, machine, loops, progress, schedules, tuned)
    stored = kept.get() if kept else None
    if stored is None:
        progress("saturating the graph e-graph")
        egraph = _graph_egraph(imported.graph, options, machine, mine)
        seconds = {"graph saturation": time.perf_counter() - begun}
        progress("choosing kernels and their sides")
        budget, tilings = _loss_budget(options), kept.tilings if kept else None
        how = {"method": options.extraction, "time_limit": options.time_limit, "budget": budget, "tilings": tilings}
        found, codes = partition(egraph, search, chosen, **how), ()
        seconds["partition"] = time.perf_counter() - begun - sum(seconds.values())
    else:
        egraph, found, codes = stored.egraph, stored.partition, stored.codes
        seconds = {"cache": time.perf_counter() - begun}
    accuracy = None
    if ranges is not None:
        accuracy = Accuracy(options.accuracy_budget or 0.0, ranges.peak * math.sqrt(found.loss))
    progress("generating machine code and streams")
    program = Partitioned(
        imported, egraph, found, chosen, search, machine, options.workers, accuracy, seconds, codes
    )
    if kept is not None and stored is None:
        kept.put(egraph, found, program.constants, program.machine_codes)
    return program


def _tuned(options: Options, machine: Target) -> Tuned | None:
    """What the tuning log holds. Raises `LogError` if a log is named that is not there, or if a file is none."""
    if options.cost_model not in (LEARNED, ROOFLINE):
        raise UnknownNameError(f"cost model {options.cost_model!r} does not exist; choose {LEARNED} or {ROOFLINE}")
    where = Path(options.log or default_log())
    if where.exists():
        return Tuned(where, machine, options.workers)
    if options.log is not None:
        raise LogError(f"{where}: there is no such tuning log; `nestegg tune` makes one")
    return None


def _useful(machine: Target, graph: Graph, quantizes: bool) -> list[Intrinsic]:
    """The target's intrinsics on weights of types that occur in the graph, or that it may be quantized to: rules for
    others could not match."""
    types = {n.type.dtype for n in graph.nodes} | ({"i8"} if quantizes else set())
    return [i for i in machine.intrinsics if i.expr.inputs[-1].dtype in types]


def _load(rules: Sequence[GraphRule | LoopRule | tuple[GraphRule, GraphRule] | str | Path]) -> Sequence[Any]:
    out: list[Any] = []
    for r in (r for each in rules for r in (each if isinstance(each, tuple) else (each,))):  # equations are two
        if not isinstance(r, str | Path | GraphRule | KernelRule | LoopRule):
            raise RuleError(f"rules holds a {type(r).__name__}: give rules, or paths of files that declare some")
        out += load_rules(r) if isinstance(r, (str, Path)) else [r]
    return out


class _Buffers:
    """Assigns buffers to e-classes."""

    def __init__(self) -> None:
        self.all: list[Buffer] = []
        self.of: dict[int, int] = {}

    def add(self, buffer: Buffer) -> int:
        self.all.append(buffer)
        return len(self.all) - 1


def plan_program(
    egraph: GraphEGraph, steps: Sequence[Step], search: KernelSearch, machine: Target, threads: int
) -> Program:
    """Buffers and kernel calls of an extracted graph program; constants are evaluated here, once."""
    buffers, types = _Buffers(), [egraph.classes[c].type for c in egraph.outputs]
    for k, c in enumerate(egraph.classes):
        if c.input is not None:
            buffers.of[k] = buffers.add(Buffer(c.type, "input", c.input))
    wanted = [a for s in steps for a in s.args] + list(egraph.outputs)
    folded = list(dict.fromkeys(a for a in wanted if egraph.classes[a].const))
    block = ConstantBlock.empty([egraph.classes[c].type for c in folded])
    arrays = dict(zip(folded, block.arrays, strict=True))

    def keep(c: int, value: np.ndarray) -> np.ndarray:
        arrays[c][...] = value
        return arrays[c]

    constant_values(egraph, folded, fold, keep)
    for index, c in enumerate(folded):
        buffers.of[c] = buffers.add(Buffer(egraph.classes[c].type, "constant", index))
    direct = _direct_outputs(egraph, steps)
    calls: list[KernelCall] = []
    for s in steps:
        if s.nest is None:
            buffers.of[s.result] = buffers.of[s.args[0]]
            continue
        place = direct.get(s.result)
        kind = Buffer(egraph.classes[s.result].type, "temporary") if place is None else (
            Buffer(types[place], "output", place)
        )
        buffers.of[s.result] = buffers.add(kind)
        calls.append(_call(s, buffers, len(calls)))
    for place, c in enumerate(egraph.outputs):
        if buffers.all[buffers.of[c]] != Buffer(types[place], "output", place):
            calls.append(_copy(types[place], place, buffers, buffers.of[c], search, len(calls)))
    return Program(tuple(buffers.all), tuple(calls), block.arrays, machine, threads, block)


def _direct_outputs(egraph: GraphEGraph, steps: Sequence[Step]) -> dict[int, int]:
    """E-class whose kernel may write straight into an output: the class itself, or what it is an alias of."""
    made = {s.result: s for s in steps}
    out: dict[int, int] = {}
    for place, c in enumerate(egraph.outputs):
        while c in made and made[c].nest is None:
            c = made[c].args[0]
        if c in made:
            out.setdefault(c, place)
    return out


def _call(s: Step, buffers: _Buffers, number: int) -> KernelCall:
    assert s.nest is not None
    args = tuple(buffers.of[a] for a in s.args)
    return KernelCall(f"kernel{number}", s.kernel, s.nest, args, buffers.of[s.result], s.seconds)


def _copy(
    type: TensorType, place: int, buffers: _Buffers, source: int, search: KernelSearch, number: int
) -> KernelCall:
    """An output that is an input, a constant, or another output: copied."""
    kernel = lower(identity(type))
    schedule = search.schedule(kernel)
    result = buffers.add(Buffer(type, "output", place))
    return KernelCall(f"kernel{number}", kernel, schedule.nest, (source,), result, schedule.seconds)


def _example(x: Any) -> Any:
    """The type of an array that is being traced; anything else as it is."""
    import jax.core

    return jax.ShapeDtypeStruct(x.shape, x.dtype) if isinstance(x, jax.core.Tracer) else x


def jit(fn: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Decorator: optimize at the first call for each structure, shapes and dtypes of the arguments (or tracers).

        @nestegg.jit
        def f(x): ...
    """
    if fn is None:
        return lambda f: jit(f, **options)
    import functools

    compiled: dict[Any, Compiled] = {}

    @functools.wraps(fn)
    def call(*args: Any) -> Any:
        import jax

        leaves, tree = jax.tree.flatten(args)
        key = (tree, tuple((np.shape(x), str(x.dtype if hasattr(x, "dtype") else np.asarray(x).dtype)) for x in leaves))
        if key not in compiled:
            with jax.ensure_compile_time_eval():
                compiled[key] = optimize(fn, *jax.tree.map(_example, args), **options)
        return compiled[key](*args)

    call.compiled = compiled  # type: ignore[attr-defined]
    return call
