"""The parts of benchmarks/gpu.py, most telling first. Each yields its checks one after the other."""

import csv
from collections.abc import Callable, Iterator
from multiprocessing.pool import AsyncResult
from pathlib import Path

import gpu_children
from gpu_bench import CALIBRATED, FINETUNE, RECIPES, Bench, Check, result


def correctness(bench: Bench) -> Iterator[Check]:
    """Every stage on the GPU gives what it gives on the CPU; runs are deterministic, also after a kill."""
    encoder, _, _ = bench.model("encoder"), bench.model("decoder"), (bench.sentences, bench.text)  # made once
    methods = ("magnitude", *CALIBRATED)
    with bench.together() as submit:
        sides = [(method, gpu) for method in methods for gpu in (True, False)]
        variants = {(m, gpu): submit(bench.prune, "decoder", m, "0.5", gpu=gpu) for m, gpu in sides}
        perplexities = [submit(bench.perplexity, gpu=gpu) for gpu in (True, False)]
        sparse = submit(bench.prune, "encoder", "uniform", "0.9")
        dense = submit(bench.finetune, encoder, "dense")
    for method in methods:
        here, there = (variants[method, gpu].get() for gpu in (True, False))
        equal = bench.child(equal_positions, here / "model", there / "model")
        least = 0.9 if method in ("sparsegpt", "admm") else 0.995  # these two invert matrices that are nearly singular
        yield Check(f"{method}: positions removed on both devices alike", f"{equal:.2%}", equal > least)
        if method in CALIBRATED:
            change = abs(output_error(here) / output_error(there) - 1)
            yield Check(f"{method}: relative difference of the layers' errors", f"{change:.1e}", change < 0.01)
    on_gpu, on_cpu = (found.get() for found in perplexities)
    difference = abs(on_gpu / on_cpu - 1)
    yield Check("perplexity: relative difference of the devices", f"{difference:.1e}", difference < 1e-3)
    yield from _runs(bench, sparse.get() / "model", dense.get())


def _runs(bench: Bench, variant: Path, dense: Path) -> Iterator[Check]:
    """Fine-tuning by each recipe: the mask holds, two runs are equal, a killed run resumes to the same bytes."""
    asked = result(variant, "manifest.json")["pruned"]["measured_sparsity"]
    with bench.together() as submit:
        found = {}
        for recipe, changes in RECIPES.items():
            start = dense if recipe == "gradual" else None
            found[recipe] = [
                submit(bench.finetune, variant, f"{recipe}-0", dense=start, **changes),
                submit(bench.finetune, variant, f"{recipe}-1", dense=start, **changes),
                submit(bench.killed, variant, f"{recipe}-killed", dense=start, **changes),
            ]
        devices = [submit(bench.finetune, variant, f"device-{gpu}", gpu=gpu) for gpu in (True, False)]
    for recipe, futures in found.items():
        first, second, killed = (future.get() for future in futures)
        sparsity = result(first, "metrics.json")["measured_sparsity"]
        yield Check(f"{recipe}: sparsity after training", f"{sparsity:.4f} of {asked:.4f}", sparsity >= asked)
        hashes = [sha256_of(run / "model") for run in (first, second, killed)]
        yield Check(f"{recipe}: two runs give the same bytes", hashes[0][:12], hashes[0] == hashes[1])
        yield Check(f"{recipe}: a killed run resumes to the same bytes", hashes[2][:12], hashes[0] == hashes[2])
    losses = [last_loss(run.get()) for run in devices]
    difference = abs(losses[0] / losses[1] - 1)
    yield Check("kept: relative difference of the devices' training losses", f"{difference:.1e}", difference < 0.05)


def equal_positions(_: Bench, here: Path, there: Path) -> float:
    """The share of positions that are zero in both models or in none."""
    from llm_sparsity.storage.container import Reader

    with Reader(here) as first, Reader(there) as second:
        masks = [(first.tensor(name) == 0) == (second.tensor(name) == 0) for name in first.names]
    return sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


def output_error(variant: Path) -> float:
    """The sum of the output errors of a variant's layers."""
    with (variant / "sparsity.csv").open() as file:
        return sum(float(row["error"] or 0) for row in csv.DictReader(file))


def sha256_of(folder: Path) -> str:
    return str(result(folder, "manifest.json")["files"]["model.safetensors"]["sha256"])


def training(bench: Bench) -> Iterator[Check]:
    """Samples per second beside a plain accelerate loop; the cost of the mask; several runs that share the GPU."""
    bench.more_sentences()
    variant = bench.prune("encoder", "uniform", "0.5") / "model"
    speeds = {}
    for mask in ("kept", "released"):
        runtime = result(bench.finetune(variant, f"speed-{mask}", mask=mask), "runtime.json")
        speeds[mask] = runtime["samples_per_second"]
        yield Check(f"{mask}: samples per second in training", f"{speeds[mask]:,.0f}")
    yield Check("cost of the kept mask", f"{speeds['released'] / speeds['kept'] - 1:.1%}")
    plain = bench.child(gpu_children.plain_training, variant, bench.sentences)
    yield Check("plain accelerate loop: samples per second", f"{plain:,.0f}")
    yield Check("kept, of the plain loop's speed", f"{speeds['kept'] / plain:.2f}")
    yield Check("seconds to set up a run", f"{runtime['setup_seconds']:.1f}")
    alone = bench.run("finetune", *bench.finetune_arguments(variant, "alone"), **FINETUNE)
    with bench.together() as submit:
        runs = [bench.finetune_arguments(variant, f"shared-{number}") for number in range(4)]
        seconds = [future.get() for future in [submit(bench.run, "finetune", *run, **FINETUNE) for run in runs]]
    yield Check("four runs that share the GPU, of four one after the other", f"{max(seconds) / (4 * alone):.2f}")


def pruning(bench: Bench) -> Iterator[Check]:
    """Calibrated pruning of a large decoder: seconds, and the peak of GPU memory."""
    for model, method in (("1.2B", "wanda"), ("1.2B", "sparsegpt"), ("7B", "wanda")):
        bench.model(model)
        found = bench.child(gpu_children.prune_large, model, method)
        case, peak = f"{method} of the {model} Llama", found["peak"] / 2**30
        yield Check(f"{case}, {found['parameters'] / 1e9:.2f}B weights", f"{found['seconds']:.1f} s")
        yield Check(f"{case}: seconds per block", f"{found['seconds'] / found['blocks']:.2f}")
        yield Check(f"{case}: peak GPU memory, at most 40 GiB", f"{peak:.2f} GiB", peak < 40)


def decode(bench: Bench) -> Iterator[Check]:
    """One to 16 tokens: sparse matrices, and whole models, beside dense ones, both under CUDA graphs."""
    yield Check("device copy, bytes read and written", f"{bench.child(gpu_children.copy):.0f} GB/s")
    for row in bench.child(gpu_children.matrices):
        name = f"matrix {row['shape']}, {row['sparsity']:.0%} removed, {row['tokens']} tokens"
        figure = f"{row['speedup']:.2f} (limit {row['limit']:.2f})"
        yield Check(f"{name}: speed-up over dense", figure, row["error"] < 5e-3)
    for name in ("1.2B", "7B"):
        for row in bench.child(gpu_children.generate, name):
            case = f"{name} Llama, {row['sparsity']:.0%} removed, {row['sequences']} sequences"
            yield Check(f"{case}: tokens/s dense", f"{row['dense']:,.0f}")
            figure = f"{row['sparse']:,.0f}, {row['sparse'] / row['dense']:.2f} times dense"
            yield Check(f"{case}: tokens/s sparse", figure, row["error"] < 0.05)


def speed(bench: Bench) -> Iterator[Check]:
    """Whole models beside dense ones in turns: 2:4 on sparse tensor cores, structured pruning; 2:4 by tokens."""
    for row in bench.child(gpu_children.two_of_four):
        name = f"2:4 matrix {row['shape']}, {row['tokens']} tokens"
        yield Check(f"{name}: speed-up over dense", f"{row['speedup']:.2f}", row["error"] < 5e-3)
    for method, sparsity in (("uniform", "2of4"), ("structured", "0.5")):
        variant, output = bench.prune("decoder", method, sparsity), bench.work / f"cost-{method}"
        arguments = ["--model", variant / "model", "--dense", bench.model("decoder"), "--output", output]
        sizes = [1, 8, 64] if bench.on_gpu else [1, 2]
        bench.run("measure", *arguments, batch_sizes=sizes, sequence_length=128, repeats=5)
        cost = result(output, "cost.json")
        for row in cost["speed"]:
            name = f"{method} {sparsity}, {row['execution']}, batch {row['batch_size']}"
            yield Check(f"{name}: speed-up over dense", f"{row['speedup']:.2f}", row["error"] < 0.1)
        yield from (Check(f"{method}: note", note) for note in cost["notes"])


def processes(bench: Bench) -> Iterator[Check]:
    """One run on several GPUs, whole and sharded weights, beside the same run on one; through gloo in the rehearsal."""
    count = min(4, bench.child(gpu_children.gpus)) if bench.on_gpu else 2
    if count < 2:
        yield Check("several processes", "not run: one GPU")
        return
    variant = bench.prune("encoder", "uniform", "0.9") / "model"
    asked = result(variant, "manifest.json")["pruned"]["measured_sparsity"]
    alone = last_loss(bench.finetune(variant, "one-process"))
    several = ["--gpus", count] if bench.on_gpu else ["--processes", count]
    for kind in ("node", "fsdp") if bench.on_gpu else ("node",):  # accelerate shards on GPUs only
        arguments = [*bench.finetune_arguments(variant, f"{kind}-{count}"), *several, "--accelerate", kind]
        bench.run("finetune", *arguments, **FINETUNE)
        run = bench.work / "runs" / f"{kind}-{count}"
        sparsity = result(run, "metrics.json")["measured_sparsity"]
        yield Check(f"{kind}, {count} processes: sparsity after training", f"{sparsity:.4f}", sparsity >= asked)
        change = abs(last_loss(run) / alone - 1)
        yield Check(f"{kind}, {count} processes: relative difference of the loss", f"{change:.1e}", change < 0.05)


def last_loss(run: Path) -> float:
    """The training loss of a run's last epoch."""
    return float((run / "history.csv").read_text().splitlines()[-1].split(",")[2])


def recovery(bench: Bench) -> Iterator[Check]:
    """Real recovery at 90 %: MiniLM on SST-2; dense, kept and gradual, three seeds that share the GPU."""
    if bench.real is None:
        yield Check("recovery", "not run: no folder of real data was given (--real)")
        return
    bench.__dict__["sentences"] = bench.real / "task"
    model, variant = bench.real / "model", bench.work / "real"
    changes = {"epochs": 2, "batch_size": 32, "micro_batch_size": 32, "max_length": 64}
    gradual = {**changes, **RECIPES["gradual"], "learning_rate": 1.5e-3, "batch_size": 16, "micro_batch_size": 16}
    arguments = ["--model", model, "--output", variant]
    bench.run("prune", *arguments, method="uniform", scope="linear", sparsity="0.9")
    runs: dict[str, list[AsyncResult[Path]]] = {"dense": [], "kept": [], "gradual": []}
    with bench.together() as submit:
        for seed in range(3):
            runs["dense"].append(submit(bench.finetune, model, f"dense-{seed}", **changes, seed=seed))
            runs["kept"].append(submit(bench.finetune, variant / "model", f"kept-{seed}", **changes, seed=seed))
        for seed, teacher in enumerate(runs["dense"]):
            run = {**gradual, "dense": teacher.get(), "seed": seed}
            runs["gradual"].append(submit(bench.finetune, variant / "model", f"gradual-{seed}", **run))
    for name, found in runs.items():
        accuracies = [result(run.get(), "metrics.json")["metrics"]["accuracy"] for run in found]
        yield Check(f"{name}: accuracy of three seeds", " ".join(f"{accuracy:.3f}" for accuracy in accuracies))


PARTS: dict[str, Callable[[Bench], Iterator[Check]]] = {
    "correctness": correctness, "decode": decode, "training": training, "speed": speed, "pruning": pruning,
    "processes": processes, "recovery": recovery,
}  # fmt: skip
