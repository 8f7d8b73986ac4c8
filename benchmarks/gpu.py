"""Every CUDA path of this project, proved and measured by one command, in at most eight minutes and without a network.

    PYTHONPATH=workflow python benchmarks/gpu.py --output gpu                 all parts, on the GPU
    PYTHONPATH=workflow python benchmarks/gpu.py --output gpu --parts speed   one part
    PYTHONPATH=workflow python benchmarks/gpu.py --output gpu --device cpu    the rehearsal: tiny shapes, any machine
    PYTHONPATH=workflow python benchmarks/gpu.py --output gpu --write         the table, from the results that exist

Each part prints PASS or FAIL with its figures, writes `{output}/{part}.json`, and goes on after a failure. A part whose
file exists is not run again; delete the file to repeat it. Models have RANDOM weights: correctness and seconds depend
on shapes alone. `recovery` needs real data: `--real FOLDER` holds model/ (MiniLM) and task/ (prepared SST-2).

Stages run as their scripts do, in processes of their own, with the GPU or with it hidden: the same code for both.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from table import table, write

ROOT = Path(__file__).parent.parent
WORDS = [f"w{number}" for number in range(2000)]
CALIBRATED = ("wanda", "sparsegpt", "admm")
FINETUNE = {
    "mask": "kept", "seed": 0, "epochs": 2, "learning_rate": 1e-4, "batch_size": 32, "micro_batch_size": 16,
    "max_length": 64, "weight_decay": 0.0, "warmup_ratio": 0.1, "max_grad_norm": 1.0, "freeze_embeddings": False,
    "gradient_checkpointing": False,
}  # fmt: skip
DISTILL = {"labels": 1.0, "logits": 1.0, "hidden": 10.0, "temperature": 2.0}
RECIPES: dict[str, dict[str, Any]] = {
    "kept": {},
    "lora": {"lora": {"rank": 4, "alpha": 8.0}, "learning_rate": 1e-3},
    "gradual": {"schedule": {"begin": 0.0, "end": 0.5, "scores": "magnitude"}, "distill": DISTILL},
}
# Widths of the models: of the rehearsal, and on a GPU those of MiniLM, of a 124M decoder, and of Llamas.
SHAPES = {
    "cpu": {
        "encoder": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
        "decoder": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64},
        "1.2B": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128},
    },
    "cuda": {
        "encoder": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
        "decoder": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 2048},
        "1.2B": {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 5632},
    },
}


@dataclass(frozen=True)
class Check:
    """One figure of a part. ok: whether it is what it has to be; None: a figure without a bound."""

    name: str
    figure: str
    ok: bool | None = None


class Bench:
    """The work folder, its made-up models and tasks, and stages run on the GPU or on the CPU.

    Args:
        folder: the output folder.
        device: "cuda" or "cpu".
        real: folder of real data; None: there is none.
    """

    def __init__(self, folder: Path, device: str, real: Path | None) -> None:
        self.folder, self.device, self.real = folder, device, real
        self.work = folder / "work"
        self.rows = 2000 if device == "cuda" else 64

    def stage(self, script: str, *arguments: str, gpu: bool = True, **settings: Any) -> subprocess.Popen[str]:
        """Start a stage's script; its output goes to the log beside the results."""
        hidden = {} if gpu else {"CUDA_VISIBLE_DEVICES": ""}
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "workflow"), **hidden}
        command = [sys.executable, str(ROOT / f"scripts/{script}.py"), *arguments, "--settings", json.dumps(settings)]
        with (self.folder / "log.txt").open("a") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log, text=True)

    def run(self, script: str, *arguments: str, gpu: bool = True, **settings: Any) -> float:
        """Run a stage's script to its end; seconds."""
        begun = time.perf_counter()
        if code := self.stage(script, *arguments, gpu=gpu, **settings).wait():
            raise RuntimeError(f"{script} ended with {code}; see {self.folder / 'log.txt'}")
        return time.perf_counter() - begun

    def model(self, name: str) -> Path:
        """The folder of a model of `SHAPES`, made once."""
        folder = self.work / "models" / name
        if not (folder / "manifest.json").exists():
            make_model(folder, SHAPES[self.device][name], encoder=name == "encoder")
        return folder

    @cached_property
    def sentences(self) -> Path:
        """A classification task of random words; one word tells the label."""
        return make_task(self.work / "sentences", self.rows)

    @cached_property
    def text(self) -> Path:
        """A language-model task of random words."""
        return make_text(self.work / "text", 100 * self.rows)

    def prune(self, model: str, method: str, sparsity: str, *, gpu: bool = True, samples: int = 8) -> Path:
        """The folder of a variant in the scope linear."""
        output = self.work / f"{model}-{method}-{sparsity}{'' if gpu else '-cpu'}"
        calibration: dict[str, Any] = {}
        if method in CALIBRATED:
            calibration = {"calibration": {"samples": samples, "sequence_length": 32, "seed": 0}}
        arguments = ["--model", str(self.model(model)), "--output", str(output)]
        arguments += ["--text", str(self.text / "manifest.json")] if calibration else []
        self.run("prune", *arguments, gpu=gpu, method=method, scope="linear", sparsity=sparsity, **calibration)
        return output

    def finetune_arguments(self, model: Path, name: str, dense: Path | None = None) -> list[str]:
        """Arguments of a run that has an output and a cache of its own."""
        output = self.work / "runs" / name
        arguments = ["--model", str(model), "--task", str(self.sentences), "--output", str(output)]
        arguments += ["--work", str(output / "work"), "--gpus", str(int(self.device == "cuda"))]
        return [*arguments, *(["--dense", str(dense / "model/manifest.json")] if dense else [])]

    def finetune(self, model: Path, name: str, *, gpu: bool = True, dense: Path | None = None, **changes: Any) -> Path:
        """The output folder of a run."""
        self.run("finetune", *self.finetune_arguments(model, name, dense), gpu=gpu, **{**FINETUNE, **changes})
        return self.work / "runs" / name


def make_model(folder: Path, shape: dict[str, int], *, encoder: bool) -> None:
    """Save a model with RANDOM weights, in float16 on disk for decoders, and a word tokenizer."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    from llm_sparsity.storage.files import write_manifest

    special = ["[PAD]", "[UNK]", "</s>"]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", eos_token="</s>", unk_token="[UNK]", model_max_length=512
    )
    fast.save_pretrained(folder)
    config_class = transformers.BertConfig if encoder else transformers.LlamaConfig
    config = config_class(vocab_size=len(vocabulary), max_position_embeddings=512, pad_token_id=0, **shape)
    torch.manual_seed(0)
    auto = transformers.AutoModel if encoder else transformers.AutoModelForCausalLM
    model = auto.from_config(config)
    (model if encoder else model.half()).save_pretrained(folder, max_shard_size="100GB")
    architecture = "encoder" if encoder else "decoder"
    count = sum(parameter.numel() for parameter in model.parameters())
    write_manifest(folder, kind="model", architecture=architecture, model_type=config.model_type, parameters=count)


def make_task(folder: Path, rows: int) -> Path:
    """Save sentences of 4 to 40 random words whose last word tells the label."""
    from llm_sparsity.storage.files import write_manifest

    folder.mkdir(parents=True, exist_ok=True)
    generator = random.Random(0)
    for split, count in (("train", rows), ("validation", rows // 2)):
        lines = []
        for _ in range(count):
            label = generator.randrange(2)
            words = [*generator.choices(WORDS[2:], k=generator.randrange(4, 40)), WORDS[label]]
            lines.append(json.dumps({"text": " ".join(words), "label": label}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    write_manifest(folder, kind="task", task="classification", labels=["no", "yes"])
    return folder


def make_text(folder: Path, words: int) -> Path:
    """Save running text of random words."""
    from llm_sparsity.storage.files import write_manifest

    folder.mkdir(parents=True, exist_ok=True)
    generator = random.Random(0)
    for split in ("train", "test"):
        lines = [json.dumps({"text": " ".join(generator.choices(WORDS, k=40))}) for _ in range(words // 40)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    write_manifest(folder, kind="task", task="language-model")
    return folder


def weights_of(folder: Path) -> dict[str, Any]:
    from llm_sparsity.storage.container import load

    return load(folder)


def sha256_of(folder: Path) -> str:
    return str(json.loads((folder / "manifest.json").read_text())["files"]["model.safetensors"]["sha256"])


def correctness(bench: Bench) -> Iterator[Check]:
    """Every stage on the GPU gives what it gives on the CPU; runs are deterministic, also after a kill."""
    for method in ("magnitude", *CALIBRATED):
        here, there = (weights_of(bench.prune("decoder", method, "0.5", gpu=gpu) / "model") for gpu in (True, False))
        masks = [(here[name] == 0) == (there[name] == 0) for name in here]
        equal = sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
        yield Check(f"{method}: equal positions on both devices", f"{equal:.4%}", equal > 0.995)
    found = []
    for gpu in (True, False):
        output = bench.work / f"perplexity-{gpu}"
        arguments = ["--model", str(bench.model("decoder")), "--task", str(bench.text), "--output", str(output)]
        bench.run("evaluate", *arguments, gpu=gpu, sequence_length=64, max_tokens=2048, batch_size=4)
        found.append(json.loads((output / "metrics.json").read_text())["metrics"]["perplexity"])
    difference = abs(found[0] / found[1] - 1)
    yield Check("perplexity: relative difference of the devices", f"{difference:.1e}", difference < 1e-3)
    yield from _runs(bench)


def _runs(bench: Bench) -> Iterator[Check]:
    """Fine-tuning by each recipe: the mask holds, two runs are equal, a killed run resumes to the same bytes."""
    variant = bench.prune("encoder", "uniform", "0.9") / "model"
    dense = bench.finetune(bench.model("encoder"), "dense")
    asked = json.loads((variant / "manifest.json").read_text())["pruned"]["measured_sparsity"]
    for recipe, changes in RECIPES.items():
        start = dense if recipe == "gradual" else None
        runs = [bench.finetune(variant, f"{recipe}-{number}", dense=start, **changes) for number in (0, 1)]
        sparsity = json.loads((runs[0] / "metrics.json").read_text())["measured_sparsity"]
        yield Check(f"{recipe}: sparsity after training", f"{sparsity:.4f} of {asked:.4f}", sparsity >= asked)
        hashes = [sha256_of(run / "model") for run in runs]
        yield Check(f"{recipe}: two runs give the same bytes", hashes[0][:12], hashes[0] == hashes[1])
        resumed = _killed(bench, variant, f"{recipe}-killed", start, changes)
        yield Check(f"{recipe}: a killed run resumes to the same bytes", resumed[:12], resumed == hashes[0])
    losses = []
    for gpu in (True, False):
        history = (bench.finetune(variant, f"device-{gpu}", gpu=gpu) / "history.csv").read_text().splitlines()
        losses.append(float(history[-1].split(",")[2]))
    difference = abs(losses[0] / losses[1] - 1)
    yield Check(
        "kept: relative difference of the training loss on both devices", f"{difference:.1e}", difference < 0.05
    )


def _killed(bench: Bench, model: Path, name: str, dense: Path | None, changes: dict[str, Any]) -> str:
    """The hash of a run that gets SIGTERM after its first epoch and is started again."""
    settings, arguments = {**FINETUNE, **changes}, bench.finetune_arguments(model, name, dense)
    process = bench.stage("finetune", *arguments, **settings)
    cache = bench.work / "runs" / name / "work"
    while process.poll() is None and not any(cache.glob("*/epoch-1/manifest.json")):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.wait()
    return sha256_of(bench.finetune(model, name, dense=dense, **changes) / "model")


def training(bench: Bench) -> Iterator[Check]:
    """Samples per second; the cost of the mask; seconds to start; several runs that share the GPU."""
    variant = bench.prune("encoder", "uniform", "0.5") / "model"
    speeds = {}
    for mask in ("kept", "released"):
        runtime = json.loads((bench.finetune(variant, f"speed-{mask}", mask=mask) / "runtime.json").read_text())
        speeds[mask] = runtime["samples_per_second"]
        yield Check(f"{mask}: samples per second in training", f"{speeds[mask]:,.0f}")
    yield Check("cost of the kept mask", f"{speeds['released'] / speeds['kept'] - 1:.1%}")
    yield Check("seconds to set up a run", f"{runtime['setup_seconds']:.1f}")
    alone = bench.run("finetune", *bench.finetune_arguments(variant, "alone"), **FINETUNE)
    begun = time.perf_counter()
    runs = [bench.stage("finetune", *bench.finetune_arguments(variant, f"shared-{k}"), **FINETUNE) for k in range(4)]
    codes = [run.wait() for run in runs]
    together = time.perf_counter() - begun
    yield Check("four runs that share the GPU end", f"{together:.0f} s; one alone takes {alone:.0f} s", not any(codes))


def pruning(bench: Bench) -> Iterator[Check]:
    """Calibrated pruning of a large decoder: seconds, and the peak of GPU memory."""
    for method in ("wanda", "sparsegpt"):
        figures = child(bench, "prune-large", method)
        yield Check(f"{method} of {figures['parameters'] / 1e9:.1f}B weights", f"{figures['seconds']:.1f} s", True)
        yield Check(f"{method}: seconds per block", f"{figures['seconds'] / figures['blocks']:.2f}")
        yield Check(f"{method}: peak GPU memory", f"{figures['peak'] / 2**30:.2f} GiB")


def prune_large(bench: Bench, method: str) -> dict[str, Any]:
    import torch

    from llm_sparsity.data.tasks import TaskFolder
    from llm_sparsity.models.folder import ModelFolder
    from llm_sparsity.pruning.prune import prune
    from llm_sparsity.study.sparsity import Sparsity

    model = ModelFolder(bench.model("1.2B"))
    calibration = {"samples": 16, "sequence_length": 256, "seed": 0}
    begun = time.perf_counter()
    prune(
        model, {Sparsity("0.5"): bench.work / f"large-{method}"}, method=method, scope="linear",
        calibration=calibration, text=TaskFolder(bench.text),
    )  # fmt: skip
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    found = {"seconds": time.perf_counter() - begun, "peak": peak, "blocks": model.config["num_hidden_layers"]}
    return found | {"parameters": model.manifest["parameters"]}


def speed(bench: Bench) -> Iterator[Check]:
    """Inference beside the dense model in turns: 2:4 on sparse tensor cores, and structured pruning."""
    for method, sparsity in (("uniform", "2of4"), ("structured", "0.5")):
        variant, output = bench.prune("decoder", method, sparsity), bench.work / f"cost-{method}"
        arguments = ["--model", str(variant / "model"), "--dense", str(bench.model("decoder")), "--output", str(output)]
        sizes = [1, 8, 64] if bench.device == "cuda" else [1, 2]
        bench.run("measure", *arguments, batch_sizes=sizes, sequence_length=128, repeats=5)
        cost = json.loads((output / "cost.json").read_text())
        for row in cost["speed"]:
            name = f"{method} {sparsity}, {row['execution']}, batch {row['batch_size']}"
            yield Check(f"{name}: speed-up over dense", f"{row['speedup']:.2f}", row["error"] < 0.1)
        yield from (Check(f"{method}: note", note) for note in cost["notes"])


def recovery(bench: Bench) -> Iterator[Check]:
    """Real recovery at 90 %: MiniLM on SST-2, dense, kept and gradual."""
    if bench.real is None:
        yield Check("recovery", "not run: no folder of real data was given (--real)")
        return
    bench.__dict__["sentences"] = bench.real / "task"
    model, variant = bench.real / "model", bench.work / "real"
    settings = {"method": "uniform", "scope": "linear", "sparsity": "0.9"}
    bench.run("prune", "--model", str(model), "--output", str(variant), **settings)
    changes = {"epochs": 3, "batch_size": 32, "max_length": 64}
    gradual = {**changes, **RECIPES["gradual"], "learning_rate": 1.5e-3, "batch_size": 8}
    dense = bench.finetune(model, "real-dense", **changes)
    runs = {
        "dense": dense,
        "kept": bench.finetune(variant / "model", "real-kept", **changes),
        "gradual": bench.finetune(variant / "model", "real-gradual", dense=dense, **gradual),
    }
    for name, run in runs.items():
        accuracy = json.loads((run / "metrics.json").read_text())["metrics"]["accuracy"]
        yield Check(f"{name}: accuracy of one seed, 90 % of the matrices removed", f"{accuracy:.3f}")


PARTS: dict[str, Callable[[Bench], Iterator[Check]]] = {
    "correctness": correctness, "training": training, "pruning": pruning, "speed": speed, "recovery": recovery,
}  # fmt: skip
CHILDREN: dict[str, Callable[..., dict[str, Any]]] = {"prune-large": prune_large}


def child(bench: Bench, name: str, argument: str) -> dict[str, Any]:
    """A function of this file in a process of its own, so that its memory is its own."""
    command = [sys.executable, __file__, "--output", str(bench.folder), "--device", bench.device]
    done = subprocess.run([*command, "--child", name, argument], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_part(bench: Bench, name: str) -> bool:
    """Run a part and write its file; whether nothing failed."""
    checks, begun = [], time.perf_counter()
    try:
        for check in PARTS[name](bench):
            checks.append(check)
            print(
                f"{ {True: 'PASS', False: 'FAIL', None: '    '}[check.ok] }  {name}: {check.name}: {check.figure}",
                flush=True,
            )
    except Exception as error:  # a part that fails must not take the others with it
        checks.append(Check("ended early", f"{type(error).__name__}: {error}", ok=False))
        print(f"FAIL  {name}: {checks[-1].figure}", flush=True)
    facts = {"device": device_name(bench.device), "seconds": time.perf_counter() - begun}
    (bench.folder / f"{name}.json").write_text(
        json.dumps(facts | {"checks": [asdict(check) for check in checks]}, indent=1)
    )
    return all(check.ok is not False for check in checks)


def device_name(device: str) -> str:
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return f"{name}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"


def report(folder: Path) -> str:
    """The table of all parts that have a file."""
    rows, devices = [], []
    for name in PARTS:
        if (folder / f"{name}.json").exists():
            found = json.loads((folder / f"{name}.json").read_text())
            devices.append(found["device"])
            words = {True: "yes", False: "no", None: ""}
            rows += [[name, check["name"], check["figure"], words[check["ok"]]] for check in found["checks"]]
    return f"{'; '.join(dict.fromkeys(devices))}\n\n" + table(
        ["part", "what", "figure", "as it must be"], rows, texts=4
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for results, logs and the work folder")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu rehearses with tiny shapes")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run (default all)")
    parser.add_argument("--real", type=Path, help="folder with model/ and task/ for the part recovery")
    parser.add_argument("--write", action="store_true", help="write the table of existing results to BENCHMARKS.md")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    bench = Bench(args.output.resolve(), args.device, args.real and args.real.resolve())
    if args.child:
        print(json.dumps(CHILDREN[args.child[0]](bench, args.child[1])))
        return
    if args.write:
        write("gpu", report(args.output))
        return
    left = [name for name in args.parts if not (args.output / f"{name}.json").exists()]
    passed = [run_part(bench, name) for name in left]
    shutil.rmtree(bench.work, ignore_errors=True)
    print(report(args.output))
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
