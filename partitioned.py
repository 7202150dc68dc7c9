"""A program of which a part runs on the CPU, in machine code, and a part on the VTA accelerator, in its simulator.

`optimize(..., target="vta")` makes it: one e-graph with the CPU's and the accelerator's kernels, of which extraction
chooses by price (`vta/partition.py`). It runs in turns: the CPU fetches what it needs, runs its kernels and sends what
the accelerator needs; then the accelerator runs a stream.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arguments import as_array
from .codegen.program import Executable, MachineCode
from .compiler import plan_program, random_inputs
from .extract.constants import constant_values
from .extract.search import KernelSearch
from .ir.imported import ImportedProgram
from .ir.reference import evaluate, evaluate_expr, fold, xla
from .ir.target import Target
from .ir.types import DTYPES
from .report import Accuracy, Verification
from .rewrite.graph_egraph import GraphEGraph
from .vta.device import Device, Stream
from .vta.network import recorded, with_data
from .vta.partition import Accelerator, Action, CpuKernel, Fetch, Partition, Place, Send, VtaKernel
from .vta.program import Program
from .vta.timing import simulate

Json = dict[str, Any]
Values = dict[int, NDArray[Any]]

#: What stands in the reports about the accelerator's side.
SIMULATED = "VTA's kernels run in the functional simulator; its times are the cycle model's at the stated clock"


@dataclass(frozen=True)
class PartitionVerification(Verification):
    """Of the outputs as `Verification`; besides, how many of the accelerator's kernels equal NumPy's integers bit by
    bit on what they read (`ok` needs all of them)."""

    vta_kernels: int
    vta_exact: int


@dataclass(frozen=True, eq=False)
class _Turn:
    """What one turn does, in this order; tensors are e-classes."""

    fetches: tuple[Fetch, ...]
    executable: Executable | None
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    sends: tuple[Send, ...]


@dataclass(eq=False)
class _Run:
    """Tensors on the CPU and the accelerator's DRAM while a program runs, and the streams that ran if they are kept."""

    values: Values
    dram: NDArray[np.uint8]
    programs: list[Program]


class Partitioned:
    """An optimized program for a CPU with a VTA. Call it like the original, from any number of threads.

    partition: what was chosen, and why. accelerator: what for. accuracy: what quantization was allowed and is estimated
    to cause, or None. seconds: what it took to compile, by stage. Not to be built directly: see `optimize`.
    """

    def __init__(
        self,
        imported: ImportedProgram,
        egraph: GraphEGraph,
        partition: Partition,
        accelerator: Accelerator,
        search: KernelSearch,
        machine: Target,
        threads: int,
        accuracy: Accuracy | None,
        seconds: dict[str, float],
        codes: Sequence[MachineCode] = (),
    ) -> None:
        self.imported, self.graph, self.egraph = imported, imported.graph, egraph
        self.partition, self.accelerator, self.accuracy = partition, accelerator, accuracy
        self.machine, self.threads, self.seconds = machine, threads, seconds
        self._codes, begun = list(codes), time.perf_counter()
        self._verified: PartitionVerification | None = None
        self._inputs = {e.input: k for k, e in enumerate(egraph.classes) if e.input is not None}
        self._constants = self._known()
        phases = partition.phases([*self._inputs.values(), *self._constants])
        self._device = Device(accelerator.config, phases)
        self._turns: list[_Turn | Stream] = []
        for k, (phase, stream) in enumerate(zip(phases, self._device.streams, strict=True)):
            if k % 2 == 0:
                self._turns.append(self._cpu_turn(phase, phases[:k] + phases[k + 1 :], search))
            elif stream is not None:
                self._turns.append(stream)
        self.seconds["machine code and streams"] = time.perf_counter() - begun

    # --- compiling --------------------------------------------------------------------------------

    def _known(self) -> Values:
        """The constants that are read as tensors: by kernels and transfers, or as outputs."""
        read = {s for a in self.partition.actions for s in a.reads if not isinstance(s, Place)}
        read |= {t for a in self.partition.actions if isinstance(a, VtaKernel) for t in a.args}
        wanted = sorted(t for t in read | set(self.egraph.outputs) if self.egraph.classes[t].const)
        return constant_values(self.egraph, wanted, fold)

    def _cpu_turn(self, phase: Sequence[Action], others: Sequence[Sequence[Action]], search: KernelSearch) -> _Turn:
        kernels = [a for a in phase if isinstance(a, CpuKernel)]
        sends = tuple(a for a in phase if isinstance(a, Send))
        fetches = tuple(a for a in phase if isinstance(a, Fetch))
        made = {a.candidate.owner for a in kernels}
        read = {s for turn in others for a in turn for s in a.reads} | {s for a in sends for s in a.reads}
        outputs = tuple(sorted(t for t in made if t in read or t in self.egraph.outputs))
        given = {t for a in kernels for t in a.candidate.args} - made - self._constants.keys()
        inputs = tuple(sorted(given))
        executable = self._executable(kernels, inputs, outputs, search) if kernels else None
        return _Turn(fetches, executable, inputs, outputs, sends)

    def _executable(
        self, kernels: Sequence[CpuKernel], inputs: Sequence[int], outputs: tuple[int, ...], search: KernelSearch
    ) -> Executable:
        """Machine code of a turn's kernels, whose inputs are what lies outside of it."""
        numbers = {t: k for k, t in enumerate(inputs)}
        classes = [replace(e, input=numbers.get(t)) for t, e in enumerate(self.egraph.classes)]
        own = replace(self.egraph, classes=classes, outputs=outputs)
        program = plan_program(own, self.partition.steps(kernels), search, self.machine, self.threads)
        types = [[classes[t].type for t in tensors] for tensors in (inputs, outputs)]
        return Executable(program, types[0], types[1], code=self._codes.pop(0) if self._codes else None)

    @property
    def machine_codes(self) -> list[MachineCode]:
        """The machine code of the CPU's turns, in order."""
        turns = [t for t in self._turns if isinstance(t, _Turn) and t.executable is not None]
        return [t.executable.code for t in turns if t.executable is not None]

    @property
    def constants(self) -> Values:
        """The known tensors that its kernels read, by e-class."""
        read = {t for a in self.partition.actions if isinstance(a, CpuKernel) for t in a.candidate.args}
        wanted = sorted(t for t in read - self._constants.keys() if self.egraph.classes[t].const)
        return self._constants | constant_values(self.egraph, wanted, fold)

    @property
    def compile_s(self) -> float:
        """Seconds from the imported graph to machine code and streams."""
        return sum(self.seconds.values())

    # --- running ----------------------------------------------------------------------------------

    def __call__(self, *args: Any) -> Any:
        """Run: results are new NumPy arrays. What runs on the accelerator is simulated.

        Raises `CallError` if arguments differ in number, structure, shape or dtype from the example's.
        """
        return self.imported.unflatten(self._results(self._execute(self._arrays(self.imported.flatten(*args)))))

    def _arrays(self, leaves: Sequence[Any]) -> list[np.ndarray]:
        names, types = self.imported.input_names, self.graph.input_types
        return [
            as_array(leaf, want, f"argument {k} ({name})")
            for k, (leaf, want, name) in enumerate(zip(leaves, types, names, strict=True))
        ]

    def _execute(self, inputs: Sequence[np.ndarray], keep: bool = False) -> _Run:
        """Run all turns; `keep` the streams with their data."""
        given = {t: inputs[k] for k, t in self._inputs.items() if k is not None}
        run = _Run({**self._constants, **given}, self._device.image(), [])
        for turn in self._turns:
            if isinstance(turn, Stream):
                self._device.write_weights(turn, run.dram, run.values)
                before = with_data(turn.program, run.dram) if keep else turn.program
                run.dram = self._device.run(turn, run.dram)
                if keep:
                    run.programs.append(replace(before, outputs=tuple(recorded(o, run.dram) for o in before.outputs)))
            else:
                self._on_cpu(turn, run)
        return run

    def _on_cpu(self, turn: _Turn, run: _Run) -> None:
        for fetch in turn.fetches:
            run.values[fetch.place.tensor] = self._fetched(run.dram, fetch.place)
        if turn.executable is not None:
            types = [self.egraph.classes[t].type for t in turn.outputs]
            results = [np.empty(t.shape, DTYPES[t.dtype].numpy) for t in types]
            turn.executable.run([run.values[t] for t in turn.inputs], results)
            run.values.update(zip(turn.outputs, results, strict=True))
        for send in turn.sends:
            self._device.write(run.dram, send.makes, run.values[send.makes.tensor])

    def _fetched(self, dram: NDArray[np.uint8], place: Place) -> NDArray[Any]:
        type_ = self.egraph.classes[place.tensor].type
        values = self._device.read(dram, place).astype(DTYPES[type_.dtype].numpy)
        return np.ascontiguousarray(values.reshape(type_.shape))

    def _results(self, run: _Run) -> list[np.ndarray]:
        """Each output an array of its own."""
        return [run.values[o].copy() for o in self.egraph.outputs]

    def dump(self, folder: Path, *args: Any) -> list[Path]:
        """Run, and write each of the accelerator's streams with the data that it finds in DRAM and the digests of what
        it leaves there: folders `00`, `01`, … (`vta/program.py`), which run on any VTA. `layouts.json` says where the
        tensors lie that go in and out, and holds them."""
        run, folders = self._execute(self._arrays(self.imported.flatten(*args)), keep=True), []
        for k, program in enumerate(run.programs):
            folders.append(folder / f"{k:02d}")
            program.save(folders[-1])
        moved = [a for a in self.partition.actions if isinstance(a, (Send, Fetch))]
        rows = [
            {
                **self._transfer_row(a),
                "address": self._device.buffers[place].address,
                "layout": place.view.describe(self.accelerator.config),
                "values": self._device.read(run.dram, place).tolist(),
            }
            for a in moved
            for place in [a.makes if isinstance(a, Send) else a.place]
        ]
        described = {"config": self.accelerator.config.name, "streams": [f.name for f in folders], "tensors": rows}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "layouts.json").write_text(json.dumps(described) + "\n")
        return folders

    # --- verifying --------------------------------------------------------------------------------

    def example_inputs(self, seed: int = 0) -> list[np.ndarray]:
        """Random inputs of the right types: normal for floats, small integers otherwise."""
        return random_inputs(self.graph, seed)

    def verify(self, *args: Any, seed: int = 0) -> PartitionVerification:
        """Compare the outputs with the graph in float64, beside XLA in its own precision, on `args` or random inputs;
        and what each of the accelerator's kernels made with NumPy's integers, bit by bit."""
        inputs = self._arrays(self.imported.flatten(*args)) if args else self.example_inputs(seed)
        run = self._execute(inputs)
        exact, peer = evaluate(self.graph, inputs, double=True), xla(self.graph)(*inputs)
        outputs = Verification.of(self._results(run), peer, exact, self.accuracy)
        kernels = self._vta_kernels
        equal = sum(self._is_exact(k, run) for k in kernels)
        found = vars(outputs) | {"ok": outputs.ok and equal == len(kernels)}
        self._verified = PartitionVerification(**found, vta_kernels=len(kernels), vta_exact=equal)
        return self._verified

    def _is_exact(self, kernel: VtaKernel, run: _Run) -> bool:
        """Whether a kernel's tensor in DRAM is what its expression says of those that it read."""
        operands = [
            self._fetched(run.dram, kernel.places[k]) if k in kernel.places else run.values[t]
            for k, t in enumerate(kernel.args)
        ]
        return np.array_equal(self._fetched(run.dram, kernel.makes), evaluate_expr(kernel.offer.expr, operands))

    def integers(self, *args: Any) -> list[NDArray[Any]]:
        """What each kernel of the accelerator makes of the arguments, in order: to hold against other implementations.
        """
        run = self._execute(self._arrays(self.imported.flatten(*args)))
        return [self._fetched(run.dram, k.makes) for k in self._vta_kernels]

    @property
    def _vta_kernels(self) -> list[VtaKernel]:
        return [a for a in self.partition.actions if isinstance(a, VtaKernel)]

    # --- reporting --------------------------------------------------------------------------------

    @property
    def sides(self) -> list[str]:
        """`cpu` or `vta` for each kernel, in order."""
        return [k["side"] for k in self.report()["kernels"]]

    def report(self) -> Json:
        """What runs where and why, with every price in microseconds; with the last verification."""
        config, board, link = self.accelerator.config, self.accelerator.board, self.accelerator.transfers
        streams = [t for t in self._turns if isinstance(t, Stream)]
        rows = {a: self.partition.prices[a] * 1e6 for a in self.partition.actions}
        transfers = [self._transfer_row(a) for a in rows if isinstance(a, (Send, Fetch))]
        transfers += [self._weights_row(a, seconds) for a, seconds in self.partition.packing.items()]
        return {
            "source": self.imported.source,
            "seconds": self.seconds,
            "target": {
                "cpu": self.machine.cpu, "threads": self.threads, "host": self.accelerator.host,
                "vta": config.name, "mhz": board.mhz,
            },
            "link": {"bytes_per_second": link.bandwidth, "latency_us": link.latency * 1e6},
            "simulated": SIMULATED,
            "kernels": [self._kernel_row(a) for a in self.partition.actions if a in self.partition.reasons],
            "transfers": transfers,
            "streams": [
                {"kernels": len(s.kernels), "cycles": simulate(s.program.stream, config, board).cycles} for s in streams
            ],
            "predicted_us": {
                "cpu": sum(us for a, us in rows.items() if isinstance(a, CpuKernel)),
                "vta": sum(us for a, us in rows.items() if isinstance(a, VtaKernel)),
                "transfers": sum(t["us"] for t in transfers),
            },
            "extraction": {
                "method": self.partition.extraction.method,
                "cost": self.partition.extraction.cost * 1e-6,
                "optimal": self.partition.extraction.optimal,
            },
            "accuracy": None if self.accuracy is None else vars(self.accuracy),
            "verify": None if self._verified is None else vars(self._verified),
        }

    def _kernel_row(self, a: Action) -> Json:
        on_vta, why = isinstance(a, VtaKernel), self.partition.reasons[a]
        assert isinstance(a, (CpuKernel, VtaKernel))
        owner, expr = (a.owner, a.offer.expr) if isinstance(a, VtaKernel) else (a.candidate.owner, a.candidate.kernel)
        return {
            "result": str(self.egraph.classes[owner].type),
            "expression": str(expr),
            "side": "vta" if on_vta else "cpu",
            "cpu_us": None if why.cpu is None else why.cpu.seconds * 1e6,
            "vta_us": None if why.vta is None else why.vta.seconds * 1e6,
            "reason": why.text(on_vta),
        }

    def _transfer_row(self, a: Send | Fetch) -> Json:
        place, to = (a.makes, "vta") if isinstance(a, Send) else (a.place, "cpu")
        return {
            "tensor": str(self.egraph.classes[place.tensor].type),
            "to": to,
            "bytes": self._device.buffers[place].size,
            "us": self.partition.prices[a] * 1e6,
        }

    def _weights_row(self, a: VtaKernel, seconds: float) -> Json:
        assert a.weights is not None
        type_ = self.egraph.classes[a.weights].type
        return {"tensor": str(type_), "to": "vta", "bytes": type_.nbytes, "us": seconds * 1e6}
