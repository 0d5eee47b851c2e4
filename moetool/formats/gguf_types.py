"""The numbers that stand for types in a GGUF file; the reader and the writer share them.

Source: ggml-org/ggml: include/ggml.h (enum ggml_type), include/gguf.h (enum gguf_type).
"""

from __future__ import annotations

import struct
from typing import Final

from moetool.tensors import DType

MAGIC: Final = b"GGUF"
DEFAULT_ALIGNMENT: Final = 32
MAX_DIMS: Final = 4
MAX_NAME: Final = 63  # bytes; ggml keeps 64 with the closing zero

# label -> (type id, struct code); ids 8 and 9 are text and array.
SCALARS: Final = {
    "u8": (0, "B"),
    "i8": (1, "b"),
    "u16": (2, "H"),
    "i16": (3, "h"),
    "u32": (4, "I"),
    "i32": (5, "i"),
    "f32": (6, "f"),
    "bool": (7, "B"),
    "u64": (10, "Q"),
    "i64": (11, "q"),
    "f64": (12, "d"),
}
BOOL, TEXT, ARRAY = 7, 8, 9
LAYOUTS: Final = {number: struct.Struct(f"<{code}") for number, code in SCALARS.values()}

# The missing numbers were withdrawn.
TENSOR_TYPES: Final = {
    0: DType.F32,
    1: DType.F16,
    2: DType.Q4_0,
    3: DType.Q4_1,
    6: DType.Q5_0,
    7: DType.Q5_1,
    8: DType.Q8_0,
    9: DType.Q8_1,
    10: DType.Q2_K,
    11: DType.Q3_K,
    12: DType.Q4_K,
    13: DType.Q5_K,
    14: DType.Q6_K,
    15: DType.Q8_K,
    16: DType.IQ2_XXS,
    17: DType.IQ2_XS,
    18: DType.IQ3_XXS,
    19: DType.IQ1_S,
    20: DType.IQ4_NL,
    21: DType.IQ3_S,
    22: DType.IQ2_S,
    23: DType.IQ4_XS,
    24: DType.I8,
    25: DType.I16,
    26: DType.I32,
    27: DType.I64,
    28: DType.F64,
    29: DType.IQ1_M,
    30: DType.BF16,
    34: DType.TQ1_0,
    35: DType.TQ2_0,
    39: DType.MXFP4,
}


def padded(position: int, alignment: int) -> int:
    """The next multiple of ``alignment``."""
    return -(-position // alignment) * alignment
