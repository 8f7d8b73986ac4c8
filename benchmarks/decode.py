"""One token times a sparse matrix on a CPU, as in generating text, beside dense and sparse products of others.

    PYTHONPATH=workflow python benchmarks/decode.py                  one thread, then two
    PYTHONPATH=workflow python benchmarks/decode.py --write          the same, and writes the tables to BENCHMARKS.md
    PYTHONPATH=workflow python benchmarks/decode.py --model 0.5 0.7  a whole Llama of 1.1B weights, `generate`

RANDOM weights: seconds depend on shapes, zeros and dtype only. Matrices of one size are many enough that no cache holds
them, and each is multiplied once a turn, by one contestant after the other. A figure is a ratio of lower quartiles to
torch's dense product of the same dtype. Its limit is that of reading: b / ((1 - s) b + 1) for weights of b bits and a
share s of zeros. Contestants: this, by the faster of its ways for few tokens, as a sparse layer chooses; in float32
torch's CSR product, and with `--peer VENV` (a virtual environment with sparse_dot_mkl and mkl) that of Intel's MKL, of
which neither has bfloat16.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from shared import argument_parser, machine, replace_block, table
from torch import Tensor
from torch.nn import functional

from llm_sparsity.inference import kernels
from llm_sparsity.inference.packed import Packed
from llm_sparsity.inference.sparse_layers import SparseLinear, layers_with_zeros, replace_layers, sparse_layers
from llm_sparsity.inference.ways import possible
from llm_sparsity.inference.workloads import copy_bandwidth
from llm_sparsity.models.derivation import derive

SPARSITIES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
WAYS = ("product", "gathered")  # of Packed, for few tokens
OUTPUTS, INPUTS = 2048, 2048
WORKING_SET = 192 << 20  # bytes of dense matrices
LLAMA = transformers.LlamaConfig(
    hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4,
    vocab_size=32000, max_position_embeddings=2048,
)  # fmt: skip
NEW_TOKENS = 16
QUARTILE = 0.25  # of the seconds of single products: on a busy machine, of those that nothing interrupted
Product = Callable[[Tensor], object]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="CPU threads (default 1 2)")
    parser.add_argument("--repeats", type=int, default=5, help="turns (default 5)")
    parser.add_argument("--peer", type=Path, help="environment with sparse_dot_mkl and mkl")
    parser.add_argument("--model", type=float, nargs="+", metavar="SPARSITY", help="time a whole model instead")
    args = parser.parse_args()
    if args.peer:
        sys.path.append(str(next(args.peer.glob("lib/python*/site-packages"))))
        os.environ["MKL_RT"] = str(next(args.peer.glob("lib/libmkl_rt.so*")))
    parts = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        parts.append(_models(args.model, args.repeats) if args.model else _matrices(args.repeats, bool(args.peer)))
        print(parts[-1], flush=True)
    if args.write:
        replace_block("decode-model" if args.model else "decode", "\n\n".join(parts))


def _matrices(repeats: int, peer: bool) -> str:
    """A table for torch's number of threads."""
    heads = ["dtype", "sparsity", "limit", "this", "way", "share of the limit", "this, GB/s", "torch dense, GB/s"]
    heads += ["torch CSR", *(["MKL CSR"] if peer else [])]
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        count = WORKING_SET // (OUTPUTS * INPUTS * dtype.itemsize)
        dense = [torch.randn(OUTPUTS, INPUTS).to(dtype) for _ in range(count)]
        for sparsity in SPARSITIES:
            rows.append(_row(dense, sparsity, repeats, peer))
            print(*rows[-1], flush=True)
    copied = copy_bandwidth(torch.device("cpu")) / 1e9
    return (
        f"{OUTPUTS} x {INPUTS} matrices, {WORKING_SET >> 20} MiB in all; speed-up over torch's dense product of the "
        f"same dtype. {machine(torch.get_num_threads())}. Kernels: {kernels.instructions()[0]}. A plain copy reads and "
        f"writes {copied:.0f} GB/s.\n\n{table(heads, rows)}"
    )


def _row(dense: list[Tensor], sparsity: float, repeats: int, peer: bool) -> list[str]:
    dtype, bits = dense[0].dtype, 8 * dense[0].itemsize
    pruned = [weight * (torch.rand(weight.shape) >= sparsity) for weight in dense]
    packed = [Packed(weight) for weight in pruned]
    bias, x = torch.zeros(OUTPUTS), torch.randn(1, INPUTS).to(dtype)
    ways = [way for way in WAYS if way in possible(packed[0], 1)]
    contestants: dict[str, list[Product]] = {"dense": [partial(_dense, weight) for weight in dense]}
    contestants |= {way: [partial(_packed, way, matrix, bias) for matrix in packed] for way in ways}
    if dtype == torch.float32:
        csr = [weight.to_sparse_csr() for weight in pruned]
        contestants["CSR"] = [partial(_csr, matrix) for matrix in csr]
        if peer:
            contestants["MKL"] = list(_mkl(pruned))
    expected = x.double() @ pruned[0].double().t()
    for name, products in contestants.items():
        if name != "dense":
            found = torch.as_tensor(products[0](x)).double().view(1, -1)
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    seconds = {name: np.quantile(took, QUARTILE) for name, took in _turns(contestants, x, repeats).items()}
    limit = bits / ((1 - sparsity) * bits + 1)
    gain = {name: seconds["dense"] / took for name, took in seconds.items()}
    way = max(ways, key=lambda way: gain[way])
    read = sum(tensor.nbytes for tensor in packed[0].buffers()) / seconds[way] / 1e9
    others = [f"{gain[name]:.2f}" if name in gain else "-" for name in ("CSR", *(["MKL"] if peer else []))]
    return [
        str(dtype).removeprefix("torch."), f"{sparsity:.0%}", f"{limit:.2f}", f"{gain[way]:.2f}", way,
        f"{gain[way] / limit:.0%}", f"{read:.1f}", f"{dense[0].nbytes / seconds['dense'] / 1e9:.1f}", *others,
    ]  # fmt: skip


def _dense(weight: Tensor, x: Tensor) -> Tensor:
    return functional.linear(x, weight)


def _packed(way: str, matrix: Packed, bias: Tensor, x: Tensor) -> Tensor:
    out: Tensor = getattr(matrix, way)(x, bias)
    return out


def _csr(matrix: Tensor, x: Tensor) -> Tensor:
    return matrix @ x.t()


def _mkl(pruned: list[Tensor]) -> Iterator[Product]:
    """Products of Intel's MKL, which multiplies scipy's matrices."""
    import scipy.sparse
    import sparse_dot_mkl  # type: ignore[import-not-found]

    sparse_dot_mkl.mkl_set_num_threads(torch.get_num_threads())
    for weight in pruned:
        matrix = scipy.sparse.csr_matrix(weight.numpy())
        yield partial(lambda matrix, x: sparse_dot_mkl.dot_product_mkl(matrix, x[0].numpy()), matrix)


def _turns(contestants: dict[str, list[Product]], x: Tensor, repeats: int) -> dict[str, list[float]]:
    """Seconds of each product; contestants take turns at each matrix."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    with torch.inference_mode():
        for turn in range(repeats + 1):
            for number in range(len(contestants["dense"])):
                for name, products in contestants.items():
                    start = time.perf_counter()
                    products[number](x)
                    if turn:
                        seconds[name].append(time.perf_counter() - start)
    return seconds


def _models(sparsities: list[float], repeats: int) -> str:
    """A table of whole models for torch's number of threads."""
    heads = ["dtype", "sparsity", "dense, tokens/s", "sparse, tokens/s", "ratio"]
    heads += ["dense matrices, MB", "sparse matrices, MB"]
    rows = [
        _model_row(dtype, sparsity, repeats) for dtype in (torch.bfloat16, torch.float32) for sparsity in sparsities
    ]
    return (
        f"A Llama of 1.1 billion random weights, its layers' matrices pruned; `generate`, greedy, {NEW_TOKENS} tokens "
        f"after 8. {machine(torch.get_num_threads())}. Kernels: {kernels.instructions()[0]}.\n\n{table(heads, rows)}"
    )


def _model_row(dtype: torch.dtype, sparsity: float, repeats: int) -> list[str]:
    """Dense first, then the same model with its layers replaced: two of them do not fit small machines."""
    torch.manual_seed(0)
    model: Any = transformers.AutoModelForCausalLM.from_config(LLAMA, dtype=dtype).eval()
    structure = derive(LLAMA)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if (role := structure.role(name)) and role.in_scope("linear"):
                weight.mul_(torch.rand(weight.shape) >= sparsity)
    layers = dict(sparse_layers(model, structure, layers_with_zeros(model, structure)))
    dense = {name: model.get_submodule(name) for name in layers}
    sizes = [
        sum(module.weight.nbytes for module in dense.values()),
        sum(b.nbytes for m in layers.values() for b in m.buffers()),
    ]
    ids = torch.randint(10, 1000, (1, 8), generator=torch.Generator().manual_seed(0))
    seconds: dict[str, list[float]] = {"dense": [], "sparse": []}
    for turn in range(repeats + 1):
        for name, chosen in (("dense", dense), ("sparse", layers)):
            replace_layers(model, chosen.items())
            took = _seconds_a_token(model, ids)
            if turn:
                seconds[name].append(took)
    assert any(isinstance(module, SparseLinear) for module in model.modules())
    speeds = [1 / np.median(took) for took in seconds.values()]
    row = [str(dtype).removeprefix("torch."), f"{sparsity:.0%}", *(f"{speed:.2f}" for speed in speeds)]
    row += [
        f"{np.median(np.array(seconds['dense']) / np.array(seconds['sparse'])):.2f}",
        *(f"{size / 1e6:.0f}" for size in sizes),
    ]
    print(*row, flush=True)
    return row


def _seconds_a_token(model: Any, ids: Tensor) -> float:
    """Seconds a token after the first."""
    times: list[float] = []

    class Clock:
        def put(self, _: object) -> None:
            times.append(time.perf_counter())

        def end(self) -> None:
            pass

    with torch.inference_mode():
        options = {"min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS, "pad_token_id": 0}
        model.generate(ids, streamer=Clock(), do_sample=False, **options)
    return (times[-1] - times[1]) / (len(times) - 2)


if __name__ == "__main__":
    main()
