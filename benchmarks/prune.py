"""Pruning beside torch.nn.utils.prune: CPU seconds, peak memory and bytes, each run in a process of its own.

    PYTHONPATH=workflow python benchmarks/prune.py            GPT-2's shape, 124M RANDOM weights, five sparsities
    PYTHONPATH=workflow python benchmarks/prune.py --write    the same, and the table goes into BENCHMARKS.md
    PYTHONPATH=workflow python benchmarks/prune.py --params 1.2e9 [--write]
                                                              a Llama's shape in shards, pruned within 6 GiB

Both sides do the whole job: read a folder, prune all weights of the base model together by magnitude, write a folder.
Seconds are of the processor, so that they can be compared on a machine that does other work at the same time.
Torch has no other way than to start again for every sparsity. "Pruning" is the part without reading and writing:
`global_unstructured` and `remove` there; here the check for NaN, scores, histograms, and zeroing the weights.
Peak memory is the resident set, with libraries and with the pages of mapped input files, which the system takes back
when it needs them. Extra memory is anonymous memory beyond what the process had when pruning began (Linux), so without
libraries, and for torch without the model.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shared import argument_parser, machine, publish, table

LEVELS = ["0.1", "0.5", "0.9", "0.95", "0.99"]
GIB = 1 << 30


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--params", type=float, help="size of a Llama-shaped model; default: GPT-2 beside torch")
    parser.add_argument("--threads", type=int, default=1, help="threads of either side (default 1)")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)  # what a child process does, and for which sparsity
    args = parser.parse_args()
    if args.part:
        _child(args.folder, *args.part, threads=args.threads)
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        folder = Path(temporary)
        if args.params:
            name, text = "prune-large", _large(folder, int(args.params), args.threads)
        else:
            name, text = "prune", _beside_torch(folder, args.threads)
    publish(name, text, write=args.write)


def _beside_torch(folder: Path, threads: int) -> str:
    _run(folder, "make", "gpt2", threads)
    _run(folder, "torch", "0.5", threads)  # once unmeasured: files and libraries are in memory for both
    ours = _run(folder, "ours", ",".join(LEVELS), threads)
    theirs = [_run(folder, "torch", level, threads) for level in LEVELS]
    differing = sum(_run(folder, "compare", level, threads)["differing"] for level in LEVELS)
    total = {key: sum(run[key] for run in theirs) for key in ("seconds", "pruning", "bytes")}
    rows = [
        ("of this pruning, CPU s", ours["pruning"], total["pruning"], 1),
        ("read, prune, write, CPU s", ours["seconds"], total["seconds"], 1),
        ("extra memory, GiB", ours["own"] / GIB, max(run["own"] for run in theirs) / GIB, 2),
        ("peak memory, GiB", ours["peak"] / GIB, max(run["peak"] for run in theirs) / GIB, 2),
        ("five folders, GiB", ours["bytes"] / GIB, total["bytes"] / GIB, 2),
    ]
    return (
        f"{ours['size'] / 1e6:.1f}M random weights in GPT-2's shape, {', '.join(LEVELS)} of all of them removed. "
        f"Weights that one side keeps and the other removes: {differing}. {machine(threads)}.\n\n"
    ) + table(
        ["", "this, one pass", "torch `global_unstructured`, five runs", "ratio"],
        [[what, f"{a:.{digits}f}", f"{b:.{digits}f}", f"{b / a:.1f}"] for what, a, b, digits in rows],
    )


def _large(folder: Path, params: int, threads: int) -> str:
    made = _run(folder, "make", str(params), threads)
    ours = _run(folder, "ours", "0.5", threads)
    found = [
        ("read, prune, write, CPU s", f"{ours['seconds']:.0f}"),
        ("of this pruning, CPU s", f"{ours['pruning']:.0f}"),
        *(
            (f"{what}, GiB", f"{size / GIB:.2f}")
            for what, size in [
                ("peak memory", ours["peak"]), ("extra memory", ours["own"]), ("largest tensor", made["largest"]),
                ("folder", ours["bytes"]),
            ]
        ),
    ]  # fmt: skip
    return (
        f"{made['size'] / 1e9:.2f}B random float32 weights in Llama's shape, {made['bytes'] / GIB:.1f} GiB in "
        f"{made['shards']} shards, half of them removed. {machine(threads)}.\n\n"
    ) + table([what for what, _ in found], [[value for _, value in found]], texts=0)


def _run(folder: Path, part: str, value: str, threads: int) -> dict[str, Any]:
    """One part in a process of its own; what it measured."""
    command = [sys.executable, __file__, "--folder", str(folder), "--threads", str(threads), "--part", part, value]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    found: dict[str, Any] = json.loads(lines[-1])
    print(part, value, found, file=sys.stderr)
    return found


def _child(folder: Path, part: str, value: str, *, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    parts: dict[str, Callable[[Path, str], dict[str, Any]]] = {
        "make": make, "ours": _ours, "torch": _torch, "compare": _compare,
    }  # fmt: skip
    found = parts[part](folder, value)
    print(json.dumps({**found, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def make(folder: Path, value: str) -> dict[str, Any]:
    """A model folder with random weights: GPT-2's shape, or a Llama's of so many parameters, shard by shard."""
    import torch
    import transformers
    from safetensors.torch import save_file

    from llm_sparsity.storage.files import write_json, write_manifest

    model = folder / "dense"
    if value == "gpt2":
        torch.manual_seed(0)
        transformers.GPT2LMHeadModel(transformers.GPT2Config()).save_pretrained(model)
        write_manifest(model, kind="model")
        return {}
    vocabulary, hidden, inner = 32000, 2048, 8192
    a_layer = 4 * hidden**2 + 3 * hidden * inner + 2 * hidden
    layers = max(round((int(value) - vocabulary * hidden) / a_layer), 1)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=16, num_key_value_heads=16, tie_word_embeddings=True,
    )  # fmt: skip
    config.save_pretrained(model)
    matrix, norm = (hidden, hidden), (hidden,)
    shapes = {f"self_attn.{name}_proj": matrix for name in "qkvo"} | {
        "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner),
        "input_layernorm": norm, "post_attention_layernorm": norm,
    }  # fmt: skip
    shards: list[dict[str, tuple[int, ...]]] = [{"model.embed_tokens.weight": (vocabulary, hidden)}]
    shards += [{f"model.layers.{i}.{name}.weight": shape for name, shape in shapes.items()} for i in range(layers)]
    shards += [{"model.norm.weight": norm}]
    generator = torch.Generator().manual_seed(0)
    files = {}
    for number, shard in enumerate(shards):
        name = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        tensors = {key: torch.randn(shape, generator=generator) * 0.02 for key, shape in shard.items()}
        save_file(tensors, model / name, metadata={"format": "pt"})
        files |= dict.fromkeys(shard, name)
    write_json(model / "model.safetensors.index.json", {"metadata": {}, "weight_map": files})
    write_manifest(model, kind="model")
    return {
        "size": vocabulary * hidden + layers * a_layer + hidden,
        "bytes": _bytes(model),
        "shards": len(shards),
        "largest": 4 * max(vocabulary, inner) * hidden,
    }


def _ours(folder: Path, value: str) -> dict[str, Any]:
    from llm_sparsity.models.folder import ModelFolder
    from llm_sparsity.pruning import prune as stage
    from llm_sparsity.pruning import unstructured
    from llm_sparsity.study.sparsity import Sparsity

    pruning, depth = 0.0, 0

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal pruning, depth
            begun = time.process_time()
            depth += 1
            result = function(*args, **kwargs)
            depth -= 1
            pruning += 0 if depth else time.process_time() - begun
            return result

        return call

    parts = [(stage, "check"), (unstructured, "thresholds"), (unstructured.UnstructuredPruner, "_prune")]
    for holder, name in parts:
        setattr(holder, name, timed(getattr(holder, name)))
    outputs = {Sparsity(level): folder / "ours" / level for level in value.split(",")}
    begun = time.process_time()
    with extra_memory() as memory:
        stage.prune(ModelFolder(folder / "dense"), outputs, method="magnitude", scope="all")
    seconds = time.process_time() - begun
    pruned = ModelFolder(next(iter(outputs.values())) / "model").pruned
    assert pruned is not None
    written = sum(_bytes(output) for output in outputs.values())
    return {"seconds": seconds, "pruning": pruning, "size": pruned["size"], "bytes": written, "own": memory[0]}


def _torch(folder: Path, level: str) -> dict[str, Any]:
    import transformers
    from torch.nn.utils import prune

    begun = time.process_time()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "dense")
    modules = [(module, "weight") for module in model.transformer.modules() if hasattr(module, "weight")]
    started = time.process_time()
    with extra_memory() as memory:
        prune.global_unstructured(modules, pruning_method=prune.L1Unstructured, amount=float(level))
        for module, name in modules:
            prune.remove(module, name)
    pruning = time.process_time() - started
    shutil.rmtree(folder / "torch" / level, ignore_errors=True)
    model.save_pretrained(folder / "torch" / level)
    written = _bytes(folder / "torch" / level)
    return {"seconds": time.process_time() - begun, "pruning": pruning, "bytes": written, "own": memory[0]}


@contextmanager
def extra_memory() -> Iterator[list[int]]:
    """A list that gets the most bytes of anonymous memory that the block took beyond what there was at its start."""
    found: list[int] = []
    before = highest = _anonymous()
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.005):
            highest = max(highest, _anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield found
    done.set()
    watcher.join()
    found.append(highest - before)


def _compare(folder: Path, level: str) -> dict[str, Any]:
    """How many weights one side removed and the other kept."""
    from llm_sparsity.storage.container import Reader

    with Reader(folder / "ours" / level / "model") as ours, Reader(folder / "torch" / level) as theirs:
        assert ours.names == theirs.names
        return {"differing": sum(int((ours.tensor(n) != theirs.tensor(n)).sum()) for n in ours.names)}


def _anonymous() -> int:
    """Bytes of this process that are no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


if __name__ == "__main__":
    main()
