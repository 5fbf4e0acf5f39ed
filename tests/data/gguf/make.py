#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Random blocks of every stored type and what gguf-py makes of them (pip install gguf numpy)."""
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize

random = np.random.default_rng(1)
BLOCKS = 64
SCALES = {"q8_0": 1, "q4_0": 1, "q4_1": 2}  # f16 numbers in front of the codes
BYTES = {"f32": 128, "f16": 64, "bf16": 64, "q8_0": 34, "q4_0": 18, "q4_1": 20}  # of 32 numbers


def finite_halves(shape):
    bits = random.integers(0, 1 << 16, shape, dtype=np.uint16)
    return np.where(bits & 0x7C00 == 0x7C00, bits ^ 0x4000, bits).astype(np.uint16)


for name, size in BYTES.items():
    if name == "f32":
        blocks = random.standard_normal((BLOCKS, 32)).astype(np.float32).view(np.uint8)
    elif name == "f16":
        blocks = finite_halves((BLOCKS, 32)).view(np.uint8)
    elif name == "bf16":
        bits = random.integers(0, 1 << 16, (BLOCKS, 32), dtype=np.uint16)
        blocks = np.where(bits & 0x7F80 == 0x7F80, bits ^ 0x4000, bits).astype(np.uint16).view(np.uint8)
    else:
        blocks = random.integers(0, 256, (BLOCKS, size), dtype=np.uint8)
        blocks[:, : 2 * SCALES[name]] = finite_halves((BLOCKS, SCALES[name])).view(np.uint8)
        blocks[0, :2] = 0  # a scale of zero
    assert blocks.shape == (BLOCKS, size)
    values = dequantize(blocks, Type[name.upper()]).reshape(BLOCKS, 32).astype("<f4")
    assert np.isfinite(values).all()
    np.save(f"{name}_blocks.npy", blocks)
    np.save(f"{name}_values.npy", values)
