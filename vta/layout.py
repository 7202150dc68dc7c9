"""Elements of the accelerator's memories as bytes: lanes of 8 or 16 bits, or narrower ones packed lowest first."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .config import Config, Memory


def element_shape(config: Config, memory: Memory) -> tuple[int, int]:
    """Rows and columns of an element; a weight's row is an output channel. Micro-ops have none: `isa` encodes them."""
    return (config.block if memory == Memory.WGT else config.batch), config.block


def element_bits(config: Config, memory: Memory) -> int:
    """Bits of one lane."""
    match memory:
        case Memory.INP:
            return config.inp_bits
        case Memory.WGT:
            return config.wgt_bits
        case Memory.ACC:
            return config.acc_bits
        case Memory.OUT:
            return config.out_bits
        case Memory.ACC_8BIT:
            return 8
        case Memory.UOP:
            raise ValueError("a micro-op has no lanes")


def pack(values: ArrayLike, config: Config, memory: Memory) -> bytes:
    """Integers to the bytes of elements; of each the low bits are kept, which is the truncation that STORE does.

    `values` has elements in its last two axes, `[…, rows, columns]` of `element_shape`.
    """
    bits = element_bits(config, memory)
    lanes = np.asarray(values).reshape(-1)
    if bits >= 8:
        return lanes.astype(f"<i{bits // 8}").tobytes()
    return pack_lanes(lanes, bits).tobytes()


def unpack(code: bytes | NDArray[np.uint8], config: Config, memory: Memory) -> NDArray[np.int64]:
    """The signed lanes of elements, `[elements, rows, columns]`."""
    lanes = signed_lanes(np.frombuffer(code, np.uint8), element_bits(config, memory))
    return lanes.astype(np.int64).reshape(-1, *element_shape(config, memory))


def pack_lanes(lanes: NDArray[np.integer], bits: int) -> NDArray[np.uint8]:
    """Lanes of fewer than 8 bits, lowest lane in the lowest bits of each byte."""
    narrow = (lanes & ((1 << bits) - 1)).astype(np.uint8).reshape(-1, 8 // bits)
    packed = np.zeros(len(narrow), np.uint8)
    for lane in range(8 // bits):
        packed |= narrow[:, lane] << np.uint8(lane * bits)
    return packed


def signed_lanes(raw: NDArray[np.uint8], bits: int) -> NDArray[np.signedinteger]:
    """Bytes as signed lanes of `bits` each, flat; a view where the lanes are whole bytes."""
    if bits >= 8:
        return raw.view(f"<i{bits // 8}")
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    narrow = (raw[:, None] >> shifts) & np.uint8((1 << bits) - 1)
    return ((narrow << np.uint8(8 - bits)).view(np.int8) >> (8 - bits)).reshape(-1)
