"""The work folder of benchmarks/gpu.py: made-up models and tasks, and the stages, each in a process of its own.

Models have RANDOM weights, and tasks random words: correctness and seconds depend on shapes alone.
"""

import importlib
import json
import multiprocessing
import os
import random
import runpy
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from multiprocessing.pool import AsyncResult, ThreadPool
from multiprocessing.process import BaseProcess as Process
from pathlib import Path
from typing import Any

FORK = multiprocessing.get_context("fork")
ROOT = Path(__file__).parent.parent
WORDS = [f"w{number}" for number in range(2000)]
CALIBRATED = ("wanda", "sparsegpt", "admm", "wanda+swaps", "wanda+reconstruct")
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
        "1.2B": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
        "7B": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
    },
    "cuda": {
        "encoder": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
        "decoder": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 2048},
        "1.2B": {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 5632},
        "7B": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 11008},
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
        self.on_gpu = device == "cuda"
        self.forking = threading.Lock()
        self.rows = 640 if self.on_gpu else 64

    def stage(self, script: str, *arguments: object, gpu: bool = True, **settings: Any) -> Process:
        """Start a stage's script; its output goes to the log beside the results."""
        command = [str(ROOT / f"scripts/{script}.py"), *map(str, arguments), "--settings", json.dumps(settings)]
        return self._start(partial(_run_script, command, gpu))

    def run(self, script: str, *arguments: object, gpu: bool = True, **settings: Any) -> float:
        """Run a stage's script to its end; seconds."""
        begun = time.perf_counter()
        process = self.stage(script, *arguments, gpu=gpu, **settings)
        process.join()
        if process.exitcode:
            raise RuntimeError(f"{script} ended with {process.exitcode}; see {self.folder / 'log.txt'}")
        return time.perf_counter() - begun

    def child(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a function in a process of its own, so that its memory is its own."""
        receiver, sender = FORK.Pipe(duplex=False)
        process = self._start(lambda: sender.send(function(self, *arguments)))
        sender.close()
        try:
            return receiver.recv()
        except EOFError:
            raise RuntimeError(f"{function.__name__} failed; see {self.folder / 'log.txt'}") from None
        finally:
            process.join()

    def _start(self, function: Callable[[], object]) -> Process:
        """Fork: the libraries are imported already, and this process computes nothing and never touches the GPU."""
        process = FORK.Process(target=_logged, args=(function, self.folder / "log.txt"))
        with self.forking:  # libraries that are imported refuse two forks at once
            process.start()
        return process

    @contextmanager
    def together(self) -> Iterator[Callable[..., AsyncResult[Any]]]:
        """A function that submits a call; such calls run at the same time, and have ended when this block ends.

        (Forks of a thread of `concurrent.futures` exit with an error: they try to join themselves.)
        """
        with ThreadPool(12 if self.on_gpu else 2) as pool:
            yield lambda function, *arguments, **settings: pool.apply_async(function, arguments, settings)
            pool.close()
            pool.join()

    def model(self, name: str) -> Path:
        """The folder of a model of `SHAPES`, made once."""
        folder = self.work / "models" / name
        if not (folder / "manifest.json").exists():
            self.child(make_model, folder, SHAPES[self.device][name], name == "encoder")
        return folder

    @cached_property
    def sentences(self) -> Path:
        """A classification task of random words; one word tells the label."""
        return make_task(self.work / "sentences", self.rows)

    def more_sentences(self) -> None:
        """From here on, `sentences` are enough for a throughput."""
        self.sentences = make_task(self.work / "more-sentences", 6 * self.rows if self.on_gpu else self.rows)

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
        arguments = ["--model", self.model(model), "--output", output]
        arguments += ["--text", self.text / "manifest.json"] if calibration else []
        self.run("prune", *arguments, gpu=gpu, method=method, scope="linear", sparsity=sparsity, **calibration)
        return output

    def perplexity(self, *, gpu: bool) -> float:
        """Of the made-up text, by the decoder."""
        output = self.work / f"perplexity-{gpu}"
        arguments = ["--model", self.model("decoder"), "--task", self.text, "--output", output]
        self.run("evaluate", *arguments, gpu=gpu, sequence_length=64, max_tokens=2048, batch_size=4)
        return float(result(output, "metrics.json")["metrics"]["perplexity"])

    def finetune_arguments(self, model: Path, name: str, dense: Path | None = None) -> list[object]:
        """Arguments of a run that has an output and a cache of its own."""
        output = self.work / "runs" / name
        arguments = ["--model", model, "--task", self.sentences, "--output", output]
        arguments += ["--work", output / "work", "--gpus", 0]  # no lease: some share the GPU
        return [*arguments, *(["--dense", dense / "model/manifest.json"] if dense else [])]

    def finetune(self, model: Path, name: str, *, gpu: bool = True, dense: Path | None = None, **changes: Any) -> Path:
        """The output folder of a run."""
        self.run("finetune", *self.finetune_arguments(model, name, dense), gpu=gpu, **{**FINETUNE, **changes})
        return self.work / "runs" / name

    def killed(self, model: Path, name: str, *, dense: Path | None = None, **changes: Any) -> Path:
        """The output folder of a run that gets SIGTERM after its first epoch and is started again."""
        process = self.stage("finetune", *self.finetune_arguments(model, name, dense), **{**FINETUNE, **changes})
        cache = self.work / "runs" / name / "work"
        while process.is_alive() and not any(cache.glob("*/epoch-1/manifest.json")):
            time.sleep(0.05)
        process.terminate()
        process.join()
        return self.finetune(model, name, dense=dense, **changes)


def preload() -> None:
    """Import what the stages import: on a machine that was just lent, this takes most of a stage's time."""
    library = ("evaluation.evaluate", "inference.measure", "pruning.prune", "training.finetune")
    families = ("bert.modeling_bert", "llama.modeling_llama")
    for name in [f"llm_sparsity.{name}" for name in library] + [f"transformers.models.{name}" for name in families]:
        importlib.import_module(name)


def _logged(function: Callable[[], object], log: Path) -> None:
    """Call a function whose output goes to the end of a file."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    function()


def _run_script(command: list[str], gpu: bool) -> None:
    if not gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


def result(folder: Path, name: str) -> dict[str, Any]:
    """A result file of a stage."""
    found: dict[str, Any] = json.loads((folder / name).read_text())
    return found


def make_model(bench: Bench, folder: Path, shape: dict[str, int], encoder: bool) -> None:
    """Save a model with RANDOM weights, a decoder in float16, and a word tokenizer."""
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
    torch.set_default_dtype(torch.float32 if encoder else torch.float16)
    with torch.device(bench.device):
        model = auto.from_config(config)
    model.save_pretrained(folder, max_shard_size="4GB")
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
