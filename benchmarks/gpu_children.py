"""What benchmarks/gpu.py measures within one process: each function here has a process, and its memory, to itself."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_bench import FINETUNE, SHAPES, Bench
from torch import Tensor
from torch.nn import Linear, Module
from torch.nn.functional import linear

TURNS = 5  # timed turns; the median counts
REPLAYS = 10  # calls in a turn


def seconds(bench: Bench, functions: Sequence[Callable[[], Any]]) -> float:
    """Median seconds of a call. The functions do the same on different memory, so that no cache holds their inputs.

    On a GPU they are captured in one CUDA graph.
    """
    if not bench.on_gpu:
        begun = time.perf_counter()
        for function in functions:
            function()
        return (time.perf_counter() - begun) / len(functions)
    for function in functions[:2]:
        function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for function in functions:
            function()
    return _replayed(graph) / len(functions)


def _replayed(graph: Any) -> float:
    graph.replay()
    found = []
    for _ in range(TURNS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(REPLAYS):
            graph.replay()
        end.record()
        torch.cuda.synchronize()
        found.append(begin.elapsed_time(end) / 1000 / REPLAYS)
    return statistics.median(found)


def device_name(bench: Bench) -> str:
    """The card and the versions."""
    import transformers

    name = torch.cuda.get_device_name() if bench.on_gpu else "cpu"
    return f"{name}, torch {torch.__version__}, transformers {transformers.__version__}, {time.strftime('%Y-%m-%d')}"


def gpus(_: Bench) -> int:
    """How many there are."""
    return torch.cuda.device_count()


def copy(bench: Bench) -> float:
    """GB/s of a large copy, bytes read and written."""
    source = torch.empty(1 << (30 if bench.on_gpu else 20), dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds(bench, [lambda: target.copy_(source)]) / 1e9


def pruned(shape: tuple[int, int], sparsity: float, device: str) -> Tensor:
    """A matrix of normal weights, a random part of which is removed."""
    weight = torch.randn(shape, device=device) / shape[1] ** 0.5
    return (weight * (torch.rand(shape, device=device) >= sparsity)).half()


def matrices(bench: Bench) -> list[dict[str, Any]]:
    """Sparse matrices times tokens, beside torch's dense product; enough copies that no cache holds them."""
    torch.manual_seed(0)
    shapes = [(4096, 4096), (11008, 4096)] if bench.on_gpu else [(48, 64)]
    sparsities = (0.5, 0.6, 0.7, 0.8, 0.9) if bench.on_gpu else (0.5,)
    return [row for shape in shapes for sparsity in sparsities for row in _matrix(bench, shape, sparsity)]


def _matrix(bench: Bench, shape: tuple[int, int], sparsity: float) -> Iterator[dict[str, Any]]:
    from llm_sparsity.inference import gpu_kernels

    copies = max(2, int(3e8 / (2 * shape[0] * shape[1]))) if bench.on_gpu else 2
    weights = [pruned(shape, sparsity, bench.device) for _ in range(copies)]
    sparse = [gpu_kernels.sparse_matrix(weight) for weight in weights]
    limit = weights[0].nbytes / sum(tensor.nbytes for tensor in sparse[0][1:])
    for tokens in (1, 4, 16) if bench.on_gpu else (1, 4):
        x = torch.randn(tokens, shape[1], device=bench.device).half()
        exact = x.double() @ weights[0].double().t()
        error = float((gpu_kernels.multiply(sparse[0], x).double() - exact).norm() / exact.norm())
        times = [
            seconds(bench, [partial(linear, x, weight) for weight in weights]),
            seconds(bench, [partial(gpu_kernels.multiply, matrix, x) for matrix in sparse]),
        ]
        name = "x".join(map(str, shape))
        row = {"shape": name, "sparsity": sparsity, "tokens": tokens, "speedup": times[0] / times[1]}
        yield row | {"limit": limit, "error": error}


def generate(bench: Bench, name: str) -> list[dict[str, Any]]:
    """Tokens per second of a Llama with RANDOM weights in float16, one token after the other."""
    import transformers

    from llm_sparsity.inference.gpu_layers import gpu_layers
    from llm_sparsity.inference.sparse_layers import with_layers

    rows = []
    vocabulary = 32000 if bench.on_gpu else 100
    config = transformers.LlamaConfig(vocab_size=vocabulary, max_position_embeddings=512, **SHAPES[bench.device][name])
    for sparsity in (0.5, 0.7) if bench.on_gpu else (0.5,):
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float16)
        with torch.device(bench.device):
            dense = transformers.LlamaForCausalLM(config).eval()
        torch.set_default_dtype(torch.float32)
        names = [n for n, m in dense.named_modules() if isinstance(m, Linear) and n != "lm_head"]
        with torch.inference_mode():
            for layer in names:
                weight = dense.get_submodule(layer).weight
                weight.mul_(torch.rand(weight.shape, device=weight.device) >= sparsity)
            sparse = with_layers(dense, gpu_layers(dense, names)[0])
            for sequences in (1, 4) if bench.on_gpu else (1,):
                speeds, logits = zip(*(_decoded(bench, model, sequences) for model in (dense, sparse)), strict=True)
                error = float((logits[0] - logits[1]).norm() / logits[0].norm())
                dense_speed, sparse_speed = speeds
                rows.append(
                    {"sparsity": sparsity, "sequences": sequences, "dense": dense_speed, "sparse": sparse_speed}
                    | {"error": error}
                )
        del dense, sparse
    return rows


def _decoded(bench: Bench, model: Module, sequences: int) -> tuple[float, Tensor]:
    """Tokens per second, and the logits, of one more token after 64."""
    from transformers import StaticCache

    generator = torch.Generator(bench.device).manual_seed(0)
    tokens = torch.randint(0, model.config.vocab_size, (sequences, 65), generator=generator, device=bench.device)
    cache = StaticCache(config=model.config, max_cache_len=256)  # type: ignore[arg-type]
    model(input_ids=tokens[:, :64], past_key_values=cache, use_cache=True)
    mask = torch.zeros(sequences, 1, 1, 256, dtype=torch.float16, device=bench.device)
    mask[..., 65:] = torch.finfo(torch.float16).min
    position = torch.full((sequences, 1), 64, device=bench.device)

    def step() -> Tensor:  # each call also moves the cache by a token, of which the mask hides all but the first
        found: Tensor = model(
            input_ids=tokens[:, 64:], past_key_values=cache, use_cache=True, attention_mask=mask, position_ids=position
        ).logits
        return found

    logits = step().double()
    return sequences / seconds(bench, [step]), logits


def two_of_four(bench: Bench) -> list[dict[str, Any]]:
    """2:4 matrices on sparse tensor cores beside dense ones, by number of tokens."""
    if not bench.on_gpu:
        return []
    from torch.sparse import to_sparse_semi_structured

    torch.manual_seed(0)
    rows = []
    for shape in ((2048, 2048), (11008, 4096)):
        weight = torch.randn(shape, device="cuda").half() / shape[1] ** 0.5
        weight = weight * torch.tensor([1, 0, 0, 1], device="cuda").half().repeat(shape[1] // 4)
        sparse = to_sparse_semi_structured(weight)
        for tokens in (1, 16, 64, 256, 1024, 4096):
            x = torch.randn(tokens, shape[1], device="cuda").half()
            exact = x.double() @ weight.double().t()
            error = float((linear(x, sparse).double() - exact).norm() / exact.norm())
            times = [seconds(bench, [partial(linear, x, matrix)]) for matrix in (weight, sparse)]
            row = {"shape": "x".join(map(str, shape)), "tokens": tokens, "error": error}
            rows.append(row | {"speedup": times[0] / times[1]})
    return rows


def prune_large(bench: Bench, name: str, method: str) -> dict[str, Any]:
    """Seconds, and the peak of GPU memory, of pruning a decoder."""
    from llm_sparsity.data.tasks import TaskFolder
    from llm_sparsity.models.folder import ModelFolder
    from llm_sparsity.pruning.prune import prune
    from llm_sparsity.study.sparsity import Sparsity

    model = ModelFolder(bench.model(name))
    calibration = {"samples": 16, "sequence_length": 256, "seed": 0}
    begun = time.perf_counter()
    prune(
        model, {Sparsity("0.5"): bench.work / f"{name}-{method}"}, method=method, scope="linear",
        calibration=calibration, text=TaskFolder(bench.text),
    )  # fmt: skip
    peak = torch.cuda.max_memory_allocated() if bench.on_gpu else 0
    found = {"seconds": time.perf_counter() - begun, "peak": peak, "blocks": model.config["num_hidden_layers"]}
    return found | {"parameters": model.manifest["parameters"]}


def plain_training(bench: Bench, variant: Path, task: Path) -> float:
    """Samples per second of a loop as in transformers' run_glue_no_trainer.py, in bfloat16 where there is a GPU."""
    import json

    import accelerate
    import transformers

    from llm_sparsity.models.folder import ModelFolder
    from llm_sparsity.models.loading import load_classifier

    accelerator = accelerate.Accelerator(mixed_precision="bf16" if bench.on_gpu else "no", cpu=not bench.on_gpu)
    folder = ModelFolder(variant)
    rows = [json.loads(line) for line in (task / "train.jsonl").read_text().splitlines()]
    tokenizer = folder.tokenizer
    encoded = [{**tokenizer(r["text"], truncation=True, max_length=64), "labels": r["label"]} for r in rows]
    loader = torch.utils.data.DataLoader(
        encoded, batch_size=FINETUNE["micro_batch_size"], shuffle=True,
        collate_fn=transformers.DataCollatorWithPadding(tokenizer),
    )  # fmt: skip
    model = load_classifier(folder, labels=2, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    model.train()
    for _ in range(2):  # the first epoch warms up
        begun = time.perf_counter()
        for number, batch in enumerate(loader):
            loss = model(**batch).loss / 2
            accelerator.backward(loss)
            if number % 2:
                optimizer.step()
                optimizer.zero_grad()
        if bench.on_gpu:
            torch.cuda.synchronize()
        taken = time.perf_counter() - begun
    return len(rows) / taken
