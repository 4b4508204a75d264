"""Compile every kernel for an H100 (sm_90) without a GPU and show what the PTX holds.

One line per kernel: programs wanted at a time on a multiprocessor, shared memory, 16-byte
asynchronous copies, tensor-core instructions, wide loads and stores, atomics that order memory, and
whether it waits for earlier kernels (dependent launch) before it touches memory. The last line is
JSON.

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
    observe,
    rows_kernel,
    sample,
    sampling_cut,
    store_kv,
    tiled_attention,
)
from lightthinker.attention.triton.launch import next_power_of_two, rows_config, tile_config
from lightthinker.kvcache import triton_compact

TARGET = GPUTarget("cuda", 90, 32)
MULTIPROCESSORS = 132


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
    **dict.fromkeys(("rows", "tiles", "page_table", "arrivals"), "*i32"),
    **dict.fromkeys(("cut", "piece_id", "piece_count", "counts", "num_listed"), "*i32"),
    **dict.fromkeys(("token_index_pool", "tensors", "moves", "group_start", "tokens"), "*i64"),
    **dict.fromkeys(("partial_out", "partial_log2_sum", "logits", "piece_best"), "*fp32"),
    **dict.fromkeys(("pieces", "piece_top", "piece_mass", "masses", "listed_logits"), "*fp32"),
    **dict.fromkeys(("x", "weight", "bias"), "*bf16"),
    **dict.fromkeys(("query_rows", "slots", "source_LHM", "target_M"), "*i64"),
    "sums": "*fp32",
    "visible": "*i1",
    "counters": "*i32",
    "seen": "*u8",
    "valid": "*i1",
}
SCALARS = {"scale": "fp32", "softcap": "fp32", "factor": "fp32"}


def compile_kernel(
    kernel: Any, constants: dict[str, Any], warps: int, stages: int, **options: Any
) -> Any:
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
        options={"num_warps": warps, "num_stages": stages, **options},
    )


def report(name: str, compiled: Any, programs: int = 1) -> dict[str, Any]:
    ptx = compiled.asm["ptx"]
    access = re.search(r"(?:ld|st|atom)\.global", ptx)
    steps = [ptx.find("griddepcontrol.wait"), ptx.find("griddepcontrol.launch_dependents")]
    steps.append(access.start() if access else -1)
    return {
        "kernel": name,
        "programs": programs,
        "shared_bytes": compiled.metadata.shared,
        "cp_async_16": ptx.count("cp.async.cg.shared.global"),
        "mma": ptx.count("mma.sync"),
        "wgmma": ptx.count("wgmma.mma_async"),
        "vector_loads": len(re.findall(r"ld\.global[.\w:]*\.v[248]\.b(?:32|64)", ptx)),
        "acquire_release": len(re.findall(r"atom\.global[.\w]*acq_rel", ptx)),
        "waits_first": int(-1 not in steps and steps == sorted(steps)),
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
    for batch in (1, 128):
        rows = rows_config(dim, itemsize, batch * shape.kv_heads, MULTIPROCESSORS)
        by_page = rows.looks_up_pages(shape.page_size)
        constants = {
            **attention,
            "NUM_KV_HEADS": shape.kv_heads,
            "BLOCK_G": 16,
            "BLOCK_N": rows.block_n,
            "BY_PAGE": by_page,
            "AHEAD": rows.looks_ahead,
            "ALIGNMENT": min(shape.page_size, rows.block_n) if by_page else 1,
            "STORE": True,
            "COMBINE_G": next_power_of_two(shape.heads // shape.kv_heads),
            "PDL": True,
        }
        compiled = compile_kernel(
            rows_kernel.rows_kernel,
            constants,
            rows.num_warps,
            rows.num_stages,
            maxnreg=rows.max_registers,
        )
        yield report(f"rows {model} batch {batch}", compiled, rows.num_programs)
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
    store = {**dims, "NUM_HEADS": shape.kv_heads, "BLOCK_H": shape.kv_heads, "PDL": True}
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
    constants = {
        "NUM_LAYERS": 28, "ALIGNED_WORDS": 8, "BLOCK_M": triton_compact.BLOCK_MOVES, "BLOCK_W": 128,
    }  # fmt: skip
    POINTERS["words"] = "*i16"
    compiled = compile_kernel(triton_compact._compact_heads_kernel, constants, 4, 1)
    yield report("compact heads", compiled)
    for dim, group in ((128, 7), (256, 8)):
        POINTERS.update(query="*bf16", key_pool="*bf16")
        constants = {
            "NUM_HEADS": 4, "GROUP": group, "BLOCK_G": 16, "DIM": dim, "BLOCK_D": dim,
            "BLOCK_N": observe.block_keys(dim), "MAX_LOGIT": False, "HAS_SOFTCAP": False,
        }  # fmt: skip
        compiled = compile_kernel(observe._observe_kernel, constants, 4, 3)
        yield report(f"observe, heads of {dim}", compiled)
    POINTERS["words"] = "*i32"
    vocabulary = {"VOCAB": 152_064}
    pieces = {**vocabulary, "NUM_PIECES": 38}
    binned = {**pieces, "BLOCK_PIECES": 64, "BINS": sampling_cut.NUM_BINS}
    listed = {**binned, "CAPACITY": sampling_cut.LIST_CAPACITY}
    search = {**listed, "BLOCK": sampling_cut.SEARCH_BLOCK, "PIVOTS": sampling_cut.NUM_PIVOTS}
    binned["CHUNK"] = sampling_cut.BINNED_TOGETHER
    for name, kernel, constants, warps in (
        ("forbid", sample._forbid_kernel, {"F": 32, "BLOCK": 32}, 1),
        ("top", sampling_cut._top_kernel, pieces, 4),
        ("bins", sampling_cut._bins_kernel, binned, 4),
        ("list", sampling_cut._list_kernel, listed, 8),
        ("cut", sampling_cut._cut_kernel, search, 16),
        ("draw", sample._draw_kernel, pieces, 4),
        ("pick", sample._pick_kernel, {**pieces, "BLOCK": 64}, 1),
    ):
        options = sampling_cut.UNFUSED if kernel.__module__ == sampling_cut.__name__ else {}
        compiled = compile_kernel(kernel, constants, warps, 3, **options)
        yield report(f"sample: {name}", compiled)


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    results = [r for model, shape in SHAPES.items() for r in attention_kernels(model, shape)]
    results += [*linear_kernels(), *other_kernels()]
    columns = list(results[0])
    print(f"{columns[0]:38s}" + "".join(f"{c:>16s}" for c in columns[1:]))
    for row in results:
        print(f"{row['kernel']:38s}" + "".join(f"{row[c]:16d}" for c in columns[1:]))
    print(json.dumps({"triton": triton.__version__, "target": "sm_90", "kernels": results}))


if __name__ == "__main__":
    main()
