"""JAX' scan, while and cond: loops whose number of steps is known while importing are unrolled, branches of a
condition that is not known are both computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from . import canonical as ir
from .canonical import constant_of
from .errors import UnsupportedError
from .graph import Value
from .jax_primitives import Params, on_importer
from .unrolling import at_step, chosen, require_steps, stacked

if TYPE_CHECKING:
    from .jax_frontend import JaxImporter, Known


@on_importer("scan")
def _scan(importer: JaxImporter, p: Params, *ins: Known) -> list[Known]:
    """(constants, carry, slices of the scanned arrays) -> (carry, results of each step), step after step."""
    consts, carry = list(ins[: p["num_consts"]]), list(ins[p["num_consts"] : p["num_consts"] + p["num_carry"]])
    scanned = ins[p["num_consts"] + p["num_carry"] :]
    steps = range(require_steps(p["length"], "the scan"))
    rows: list[list[Known]] = []
    for step in reversed(steps) if p["reverse"] else steps:
        out = importer.inline(p["jaxpr"], [*consts, *carry, *(at_step(x, step) for x in scanned)])
        carry = list(out[: len(carry)])
        rows.append(list(out[len(carry) :]))
    if not rows:
        empty = [v.aval for v in p["jaxpr"].jaxpr.outvars[len(carry) :]]
        return [*carry, *(np.zeros((0, *a.shape), a.dtype) for a in empty)]
    if p["reverse"]:
        rows.reverse()
    return [*carry, *(stacked(importer.builder, column) for column in zip(*rows, strict=True))]


@on_importer("while")
def _while(importer: JaxImporter, p: Params, *ins: Known) -> list[Known]:
    """As long as the condition holds, which must be known at each step."""
    for_cond, for_body = p["cond_nconsts"], p["body_nconsts"]
    cond_consts, body_consts = list(ins[:for_cond]), list(ins[for_cond : for_cond + for_body])
    state, step = list(ins[for_cond + for_body :]), 0
    while _decided(importer.inline(p["cond_jaxpr"], [*cond_consts, *state])[0]):
        step += 1
        require_steps(step, "the while loop")
        state = list(importer.inline(p["body_jaxpr"], [*body_consts, *state]))
    return state


def _decided(x: Known) -> bool:
    known = constant_of(x) if isinstance(x, Value) else x
    if known is None:
        raise UnsupportedError("its condition depends on arguments; only loops of known length are unrolled")
    return bool(known.reshape(()))


@on_importer("cond")
def _cond(importer: JaxImporter, p: Params, which: Known, *ins: Known) -> list[Known]:
    """The branch of that number; of an unknown one, all branches and a choice between their results."""
    branches = p["branches"]
    known = constant_of(which) if isinstance(which, Value) else which
    if known is not None:
        place = min(max(int(known.reshape(())), 0), len(branches) - 1)
        return list(importer.inline(branches[place], list(ins)))
    assert isinstance(which, Value)
    results = [importer.inline(b, list(ins)) for b in branches]
    out: list[Known] = list(results[-1])
    for k in reversed(range(len(branches) - 1)):
        here = ir.binary("le", ir.cast(which, "i32"), k)
        out = [chosen(importer.builder, here, t, o) for t, o in zip(results[k], out, strict=True)]
    return out
