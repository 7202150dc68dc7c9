"""What the cache keeps of a compilation, and the names under which it is found again.

A program is found by its graph and by its `Context`: everything else that decides what it compiles to. A kernel's
schedule is found by the kernel and the part of the context that loops depend on, so that another model with the same
kernel does not search it again.
"""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import json
import uuid
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from .cache import Cache, digest, source_digest, text_of
from .codegen.memory import aligned_bytes
from .codegen.program import Buffer, ConstantBlock, KernelCall, MachineCode, Program
from .extract.search import Estimate, KernelSchedule
from .ir.expr import TensorExpr
from .ir.graph import Graph
from .ir.loops import Lowered
from .ir.serial import KERNELS, Codec
from .ir.target import Target
from .vta.choose import Choice
from .vta.conv import Tiling

#: Packages whose version decides what a program compiles to.
MAKERS = ("egglog", "highspy", "jax", "jaxlib", "llvmlite", "numpy")
#: Options that schedules of kernels do not depend on.
GRAPH_OPTIONS = ("graph_limits", "extraction", "time_limit", "accuracy_budget", "ranges", "scales", "rounding_gain")
#: Bytes of constants up to which a loaded program has a copy. A file's pages are small: read from them, resnet50 and
#: alexnet ran 4-5 % slower (bert_base not), but new memory takes 0.2 to 3.5 s a GB.
COPIED = 192 << 20
#: Estimates kept of a context: of the zoo's models there are some 20,000, of 130 bytes.
MOST_ESTIMATES = 100_000
PROGRAMS = KERNELS.extended(Buffer, KernelCall, Target)
SCHEDULES = KERNELS.extended(KernelSchedule)
TILINGS = Codec((Choice, Tiling))

Key = TypeVar("Key")
Found = TypeVar("Found")


def graph_digest(graph: Graph) -> str:
    """Digest of a graph: its operators, types, names of inputs, and the bytes of its constants."""
    return digest([str(graph), *(graph.constants[k] for k in sorted(graph.constants))])


@dataclass(frozen=True)
class Context:
    """Named digests of what decides a compilation besides the graph; `whole` is one digest of them all."""

    parts: Mapping[str, str]

    @property
    def whole(self) -> str:
        return digest(f"{k}={v}" for k, v in sorted(self.parts.items()))

    def without(self, *names: str) -> Context:
        return Context({n: v for n, v in self.parts.items() if n not in names})

    def changed(self, other: Mapping[str, str]) -> list[str]:
        """Names of the parts in which another context differs."""
        return sorted(n for n in {*self.parts, *other} if self.parts.get(n) != other.get(n))


def context(
    machine: Target,
    threads: int,
    options: Mapping[str, Any],
    graph: Sequence[Any],
    loop: Sequence[Any],
    measured: str = "",
) -> Context:
    """The context of a compilation with these options and these user's rules of graphs and loops. `measured`: the
    state of the tuning log."""
    intrinsics = [(i.name, str(i.expr), i.features, i.rate, i.repeat, _origin(i.emit)) for i in machine.intrinsics]
    return Context(
        {
            "nestegg's source": package_digest(),
            "versions of packages": digest(importlib.metadata.version(name) for name in MAKERS),
            "target": digest([repr(machine), repr(intrinsics)]),
            "threads": str(threads),
            "graph options": _options({k: v for k, v in options.items() if k in GRAPH_OPTIONS}),
            "options": _options({k: v for k, v in options.items() if k not in GRAPH_OPTIONS}),
            "graph rules": digest(map(_rule, graph)),
            "loop rules": digest(map(_rule, loop)),
            "tuning log": measured,
        }
    )


@functools.cache
def package_digest() -> str:
    """Digest of nestegg's own source, once a process."""
    return source_digest(Path(__file__).parent)


def _options(values: Mapping[str, Any]) -> str:
    """A file counts as what stands in it."""

    def text(value: Any) -> str:
        return digest([value.read_bytes()]) if isinstance(value, Path) and value.is_file() else repr(value)

    return digest(f"{name}={text(v)}" for name, v in sorted(values.items()))


def _rule(rule: Any) -> str:
    functions = [v for v in vars(rule).values() if inspect.isfunction(v)]
    file = Path(rule.where.rpartition(":")[0])
    source = digest([file.read_bytes()]) if file.is_file() else str(uuid.uuid4())  # typed in: never the same again
    return digest([rule.name, str(rule), rule.condition, source, *map(_origin, functions)])


def _origin(f: Callable[..., Any]) -> str:
    """A function: the text of its file, its place there, and what it closes over."""
    if isinstance(f, functools.partial):
        return f"{_origin(f.func)} {f.args!r} {f.keywords!r}"
    code = getattr(f, "__code__", None)
    if code is None:
        return repr(f)
    file = Path(code.co_filename)
    closed = [repr(c.cell_contents) for c in f.__closure__ or ()]
    return digest([file.read_bytes() if file.is_file() else code.co_code, f"{code.co_firstlineno}", *closed])


class _Records(ABC, Generic[Key, Found]):
    """What was found for kernels, one record each."""

    codec: Codec

    def __init__(self, cache: Cache) -> None:
        self.cache = cache

    def get(self, key: Key, /) -> Found | None:
        """What was found earlier."""
        parts = self.cache.read(self._name(key))
        return None if parts is None else self.codec.loads(text_of(parts["found"]))

    def put(self, key: Key, found: Found, /) -> None:
        self.cache.write(self._name(key), {"found": self.codec.dumps(found).encode()})

    def _name(self, key: Key) -> str:
        name = digest(self._key(key))
        return f"kernels/{name[:2]}/{name[:40]}"

    @abstractmethod
    def _key(self, key: Key) -> Sequence[str]:
        """All that decides what is found."""


class ScheduleStore(_Records[Lowered, KernelSchedule]):
    """Schedules of kernels in the cache, under one context, and estimates of expressions' kernels: these all in one
    entry, since a compilation asks for hundreds."""

    codec = SCHEDULES

    def __init__(self, cache: Cache, where: Context) -> None:
        super().__init__(cache)
        self._digest = where.without("graph rules", "graph options", "tuning log").whole

    def _key(self, key: Lowered) -> Sequence[str]:
        return [self._digest, KERNELS.dumps(key)]

    def estimates(self, exprs: Sequence[TensorExpr], /) -> list[Estimate | None]:
        kept = self._estimates()
        found = [kept.get(_expression(e)) for e in exprs]
        return [None if values is None else Estimate(*values) for values in found]

    def put_estimates(self, found: Mapping[TensorExpr, Estimate], /) -> None:
        """Kept beside what others have put there; when there are too many, instead of it."""
        new = {_expression(e): astuple(estimate) for e, estimate in found.items()}
        kept = self._estimates()
        whole = {**kept, **new} if len(kept) + len(new) <= MOST_ESTIMATES else new
        self.cache.write(self._estimates_name, {"found": json.dumps(whole).encode()})

    def _estimates(self) -> dict[str, tuple[str, bool, bool, float]]:
        parts = self.cache.read(self._estimates_name)
        return {} if parts is None else json.loads(text_of(parts["found"]))

    @property
    def _estimates_name(self) -> str:
        name = digest([self._digest, "estimates"])
        return f"kernels/{name[:2]}/{name[:40]}"


def _expression(e: TensorExpr) -> str:
    """The name of an expression among the estimates."""
    return digest([KERNELS.dumps((e.inputs, e.axes, e.body))])[:32]


class TilingStore(_Records[str, Choice]):
    """Schedules of the accelerator's layers in the cache (`vta.choose.Tilings`): they depend on nothing but nestegg's
    source and what their key says."""

    codec = TILINGS

    def _key(self, key: str) -> Sequence[str]:
        return [package_digest(), key]


@dataclass(frozen=True, eq=False)
class StoredProgram:
    """A program as it was compiled, the figures of its report, and its e-graph and extraction as text."""

    program: Program
    machine_code: MachineCode
    found: dict[str, Any]
    texts: dict[str, str]


def _near(constants: np.ndarray) -> np.ndarray:
    """Constants where a program reads them fastest: in large pages, if there are few enough to be copied there."""
    if constants.nbytes > COPIED:
        return constants
    own = aligned_bytes(constants.nbytes)
    own[:] = constants
    return own


class ProgramStore:
    """Compiled programs in the cache: one graph under one context."""

    def __init__(self, cache: Cache, graph: Graph, where: Context) -> None:
        self.cache, self.context = cache, where
        self.name = f"programs/{graph_digest(graph)[:40]}/{where.whole[:40]}"

    def get(self) -> StoredProgram | None:
        parts = self.cache.read(self.name)
        if parts is None:
            return None
        buffers, calls, target, threads = PROGRAMS.loads(text_of(parts["program"]))
        code = MachineCode(parts["code"].tobytes(), _near(parts["constants"]))
        types = [b.type for b in buffers if b.space == "constant"]
        block = ConstantBlock.of(types, code.constants)
        program = Program(buffers, calls, block.arrays, target, threads, block)
        texts = json.loads(zlib.decompress(parts["texts"].tobytes()))
        return StoredProgram(program, code, json.loads(text_of(parts["found"])), texts)

    def put(self, program: Program, code: MachineCode, found: dict[str, Any], texts: Mapping[str, str]) -> None:
        plain = (program.buffers, program.calls, program.target, program.threads)
        self.cache.write(
            self.name,
            {
                "context": json.dumps(dict(self.context.parts)).encode(),
                "program": PROGRAMS.dumps(plain).encode(),
                "found": json.dumps(found).encode(),
                "texts": zlib.compress(json.dumps(dict(texts)).encode(), 1),
                "code": code.object,
                "constants": code.constants,
            },
        )

    def why_missing(self) -> str:
        """What differs from the nearest program that is kept of the same graph."""
        kept = [self.cache.read(name, until="context") for name in self.cache.siblings(self.name)]
        changes = [self.context.changed(json.loads(text_of(p["context"]))) for p in kept if p]
        if not changes:
            return "no program of this graph is kept"
        return f"other {' and '.join(min(changes, key=len))} than when this graph was compiled"
