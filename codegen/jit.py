"""LLVM modules to machine code, and machine code into this process."""

from __future__ import annotations

import ctypes
import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import llvmlite.binding as llvm

from ..ir.target import Target

_lock = threading.Lock()
_ready = False


def _initialise() -> None:
    global _ready
    with _lock:
        if not _ready:
            llvm.initialize_all_targets()
            llvm.initialize_all_asmprinters()
            llvm.initialize_native_asmparser()  # for the fences of kernel_code
            _ready = True


def target_machine(target: Target) -> llvm.TargetMachine:
    """LLVM's machine for a target: position-independent small code, which serves JIT and object files alike."""
    _initialise()
    found = llvm.Target.from_triple(target.triple)
    return found.create_target_machine(target.cpu, target.features, opt=3, reloc="pic", codemodel="small")


def compile_object(text: str, target: Target) -> bytes:
    """LLVM IR text to an object file. No mid-level passes: vectors, unrolling and register tiles are in the text."""
    machine = target_machine(target)
    module = llvm.parse_assembly(text)
    module.triple = target.triple
    module.data_layout = str(machine.target_data)
    module.verify()
    return machine.emit_object(module)


def assembly(text: str, target: Target) -> str:
    machine = target_machine(target)
    module = llvm.parse_assembly(text)
    module.triple = target.triple
    module.data_layout = str(machine.target_data)
    return machine.emit_assembly(module)


@dataclass(frozen=True)
class Loaded:
    """Machine code in this process. `keep` owns the memory."""

    symbols: dict[str, int]
    keep: Any

    def function(self, name: str, *arguments: Any) -> Callable[..., None]:
        return ctypes.CFUNCTYPE(None, *arguments)(self.symbols[name])


_jit: list[Any] = []


def load_object(code: bytes, symbols: tuple[str, ...], imports: Mapping[str, int] | None = None) -> Loaded:
    """Load an object file and find its symbols. `imports`: addresses of symbols that it leaves undefined."""
    _initialise()
    with _lock:
        if not _jit:
            # JITLink lays an object's sections out side by side. LLVM's older linker maps each on its own, and ends the
            # process where two lie more than 2 GiB apart, as they may after large mappings.
            _jit.append(llvm.create_lljit_compiler(use_jit_link=True))
        counter = len(_jit)
        name = f"nestegg_{hashlib.sha256(code).hexdigest()[:16]}_{counter}"
        builder = llvm.JITLibraryBuilder().add_object_img(code).add_current_process()
        for s in symbols:
            builder.export_symbol(s)
        for s, address in (imports or {}).items():
            builder.import_symbol(s, address)
        tracker = builder.link(_jit[0], name)
        _jit.append(tracker)
        return Loaded({s: tracker[s] for s in symbols}, tracker)
