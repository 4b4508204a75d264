"""Compile every kernel for an H100 (sm_90) without a GPU and show what the PTX holds.

One line per kernel: shared memory, 16-byte asynchronous copies, tensor-core instructions, wide
loads and stores. The last line is JSON.

    python scripts/compile_kernels.py
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

os.environ.pop("TRITON_INTERPRET", None)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lightthinker.attention.rows_metadata import TILE_ROWS
from lightthinker.attention.triton import (
    linear,
    rows_attention,
    sample,
    store_kv,
    tiled_attention,
)
from lightthinker.attention.triton.launch import rows_config, tile_config
from lightthinker.kvcache import triton_compact

TARGET = GPUTarget("cuda", 90, 32)


class Shape(NamedTuple):
    """What the attention kernels are compiled for."""

    heads: int
    kv_heads: int
    dim: int
    page_size: int = 16
    window: int = 0
    softcap: bool = False
    dtype: str = "bf16"


SHAPES = {
    "Qwen2.5-1.5B": Shape(12, 2, 128),
    "Qwen2.5-7B": Shape(28, 4, 128),
    "Qwen2.5-7B pages of 1": Shape(28, 4, 128, page_size=1),
    "Llama-8B": Shape(32, 8, 128),
    "Gemma2-9B": Shape(16, 8, 256, window=4096, softcap=True),
    "Gemma2-9B fp32": Shape(16, 8, 256, window=4096, softcap=True, dtype="fp32"),
}
FLOATS = ("query", "key", "value", "key_pool", "value_pool", "out")

POINTERS = {
    **dict.fromkeys(("rows", "tiles", "page_table", "cut", "piece_id"), "*i32"),
    **dict.fromkeys(("token_index_pool", "tensors", "moves", "group_start", "tokens"), "*i64"),
    **dict.fromkeys(("partial_out", "partial_log2_sum", "logits", "piece_best"), "*fp32"),
    **dict.fromkeys(("x", "weight", "bias"), "*bf16"),
    "pieces": "*fp32",
    "counters": "*i32",
    "seen": "*u8",
    "valid": "*i1",
}
SCALARS = {"scale": "fp32", "softcap": "fp32"}


def compile_kernel(kernel: Any, constants: dict[str, Any], warps: int, stages: int) -> Any:
    """Compile as the launcher would: strides divisible by 16, element strides 1."""
    names = kernel.arg_names
    constants = {**constants, **{n: 1 for n in names if n.endswith("_stride_d")}}
    signature = {
        n: "constexpr" if n in constants else POINTERS.get(n) or SCALARS.get(n, "i32")
        for n in names
    }
    multiples = {n for n in names if "_stride" in n} | {"N", "K"}
    aligned = [n for n in names if signature[n].startswith("*") or n in multiples]
    attributes = {
        (names.index(n),): [["tt.divisibility", 16]] for n in aligned if n not in constants
    }
    return triton.compile(
        ASTSource(kernel, signature, constants, attributes),
        target=TARGET,
        options={"num_warps": warps, "num_stages": stages},
    )


def report(name: str, compiled: Any) -> dict[str, Any]:
    ptx = compiled.asm["ptx"]
    return {
        "kernel": name,
        "shared_bytes": compiled.metadata.shared,
        "cp_async_16": ptx.count("cp.async.cg.shared.global"),
        "mma": ptx.count("mma.sync"),
        "wgmma": ptx.count("wgmma.mma_async"),
        "vector_loads": len(re.findall(r"ld\.global[.\w:]*\.v[248]\.b(?:32|64)", ptx)),
        "vector_stores": len(re.findall(r"st\.global[.\w:]*\.v[248]\.b(?:32|64)", ptx)),
    }


def attention_kernels(model: str, shape: Shape) -> Iterator[dict[str, Any]]:
    POINTERS.update(dict.fromkeys(FLOATS, f"*{shape.dtype}"))
    itemsize, dim = (4 if shape.dtype == "fp32" else 2), shape.dim
    dims = dict.fromkeys(("KEY_DIM", "BLOCK_DK", "VALUE_DIM", "BLOCK_DV"), dim)
    attention = {
        **dims,
        "GROUP": shape.heads // shape.kv_heads,
        "PAGE_SIZE": shape.page_size,
        "WINDOW": shape.window,
        "HAS_SOFTCAP": shape.softcap,
    }
    config = rows_config(dim, itemsize)
    for splits in (1, 8):
        constants = {
            **attention,
            "NUM_KV_HEADS": shape.kv_heads,
            "BLOCK_G": 16,
            "BLOCK_N": config.block_n,
            "NUM_SPLITS": splits,
        }
        compiled = compile_kernel(
            rows_attention._rows_kernel, constants, config.num_warps, config.num_stages
        )
        yield report(f"rows {model} splits={splits}", compiled)
    combine = {"NUM_HEADS": shape.heads, "VALUE_DIM": dim, "BLOCK_DV": dim, "NUM_SPLITS": 8}
    compiled = compile_kernel(rows_attention._combine_kernel, combine, 2, 3)
    yield report(f"combine {model}", compiled)
    config = tile_config(dim, itemsize)
    tiled = {
        **attention,
        "NUM_HEADS": shape.heads,
        "BLOCK_M": TILE_ROWS,
        "BLOCK_N": config.block_n,
    }
    compiled = compile_kernel(
        tiled_attention._tile_kernel, tiled, config.num_warps, config.num_stages
    )
    yield report(f"tiles {model}", compiled)
    store = {**dims, "NUM_HEADS": shape.kv_heads, "BLOCK_H": shape.kv_heads}
    compiled = compile_kernel(store_kv._store_kv_kernel, store, 4, 3)
    yield report(f"store_kv {model}", compiled)


def linear_kernels() -> Iterator[dict[str, Any]]:
    POINTERS["out"] = "*bf16"
    for num_rows, gated, splits in itertools.product((16, 128), (False, True), (1, 4)):
        constants = {
            "BLOCK_T": num_rows,
            "BLOCK_N": 64,
            "BLOCK_K": 64,
            "EVEN_K": True,
            "SPLITS": splits,
            "GATED": gated,
            "HAS_BIAS": not gated,
            "ACTIVATION": "silu" if gated else None,
            "PDL": True,
            "PREFETCHED": 128,
        }
        compiled = compile_kernel(linear._linear_kernel, constants, 4, 4)
        name = "gated linear" if gated else "linear"
        yield report(f"{name} of {num_rows} rows, {splits} pieces", compiled)


def other_kernels() -> Iterator[dict[str, Any]]:
    for word, aligned in ((16, 8), (32, 4), (16, 1)):
        POINTERS["words"] = f"*i{word}"
        constants = {
            "ALIGNED_WORDS": aligned,
            "BLOCK_M": triton_compact.BLOCK_MOVES,
            "BLOCK_W": triton_compact.BLOCK_WORDS,
        }
        compiled = compile_kernel(triton_compact._compact_kernel, constants, 4, 1)
        yield report(f"compact {word}-bit words, {aligned} aligned", compiled)
    POINTERS["words"] = "*i32"
    vocabulary = {"VOCAB": 152_064}
    pieces = {**vocabulary, "NUM_PIECES": 38}
    search = {**vocabulary, "BLOCK": sample.SEARCH_BLOCK, "PIVOTS": sample.NUM_PIVOTS}
    for name, kernel, constants, warps in (
        ("forbid", sample._forbid_kernel, {"F": 32, "BLOCK": 32}, 1),
        ("cut", sample._cut_kernel, search, 16),
        ("draw", sample._draw_kernel, pieces, 4),
        ("pick", sample._pick_kernel, {**pieces, "BLOCK": 64}, 1),
    ):
        compiled = compile_kernel(kernel, constants, warps, 3)
        yield report(f"sample: {name}", compiled)


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    results = [r for model, shape in SHAPES.items() for r in attention_kernels(model, shape)]
    results += [*linear_kernels(), *other_kernels()]
    columns = list(results[0])
    print(f"{columns[0]:38s}" + "".join(f"{c:>15s}" for c in columns[1:]))
    for row in results:
        print(f"{row['kernel']:38s}" + "".join(f"{row[c]:15d}" for c in columns[1:]))
    print(json.dumps({"triton": triton.__version__, "target": "sm_90", "kernels": results}))


if __name__ == "__main__":
    main()
