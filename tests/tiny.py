"""Tiny models with RANDOM weights, one of each architecture, for tests that need a model but no meaning."""

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WORDS = "the a film movie story is was not very good bad great dull fine awful of and to it this".split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<s>", "</s>"]
ARCHITECTURE = {
    "bert": "encoder",
    "roberta": "encoder",
    "distilbert": "encoder",
    "gpt2": "decoder",
    "llama": "decoder",
    "bart": "encoder-decoder",
}
# One variant of a tiny model in the folder `model`, pruned and fine-tuned on the task of `save_mood_task` in `task`.
MOOD_STUDY = {
    "name": "tiny",
    "study": [
        {"models": ["bert"], "methods": ["magnitude"], "scopes": ["all"], "sparsities": [0.9], "tasks": ["mood"],
         "measure": False}
    ],
    "models": {"bert": {"architecture": "encoder", "source": {"folder": "model"}}},
    "tasks": {
        "mood": {
            "kind": "classification", "source": {"folder": "task"}, "text": "text", "label": "label",
            "files": {"train": "train.jsonl", "validation": "validation.jsonl"},
        }
    },
    "finetune": {"epochs": 1, "batch_size": 16, "micro_batch_size": 16, "max_length": 32},
}  # fmt: skip


def save_tiny_model(kind: str, folder: Path) -> Path:
    """Save a `kind` (bert, roberta, distilbert, gpt2, llama, bart) with random weights as a model folder."""
    import torch
    import transformers as tf
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    from llm_sparsity.storage.files import write_manifest

    vocabulary = {word: i for i, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if ARCHITECTURE[kind] == "encoder":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
        special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    else:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 4), ("</s>", 5)]
        )
        special = {"bos_token": "<s>", "eos_token": "</s>"}
        if kind == "bart":
            special["pad_token"] = "[PAD]"
    size = len(vocabulary)
    common = {"vocab_size": size}
    if ARCHITECTURE[kind] != "encoder":
        common |= {"bos_token_id": 4, "eos_token_id": 5}
    configs = {
        "bert": lambda: tf.BertConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
            max_position_embeddings=64, pad_token_id=0, **common,
        ),
        "roberta": lambda: tf.RobertaConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
            max_position_embeddings=66, pad_token_id=0, bos_token_id=2, eos_token_id=3, **common,
        ),
        "distilbert": lambda: tf.DistilBertConfig(
            dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=64, pad_token_id=0, **common
        ),
        "gpt2": lambda: tf.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **common),
        "llama": lambda: tf.LlamaConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=64, max_position_embeddings=64, tie_word_embeddings=True, **common,
        ),
        "bart": lambda: tf.BartConfig(
            d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
            encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64, pad_token_id=0,
            decoder_start_token_id=5, forced_eos_token_id=5, **common,
        ),
    }  # fmt: skip
    classes = {
        "bert": tf.BertModel,
        "roberta": tf.RobertaForMaskedLM,
        "distilbert": tf.DistilBertModel,
        "gpt2": tf.GPT2LMHeadModel,
        "llama": tf.LlamaForCausalLM,
        "bart": tf.BartModel,
    }
    generator = torch.random.get_rng_state()
    torch.manual_seed(sum(map(ord, kind)))
    model = classes[kind](configs[kind]())
    torch.random.set_rng_state(generator)
    model.save_pretrained(folder)
    tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **special).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    write_manifest(
        folder,
        kind="model",
        architecture=ARCHITECTURE[kind],
        model_type=config["model_type"],
        parameters=sum(p.numel() for p in model.parameters()),
        source={"folder": "random weights"},
    )
    return folder


def save_mood_task(folder: Path) -> Path:
    """Save a made-up task that a tiny random model can learn: is the mood word a good one?"""
    from llm_sparsity.storage.files import write_manifest

    folder.mkdir(parents=True, exist_ok=True)
    generator = random.Random(0)
    lines = []
    for _ in range(96):
        label = generator.randrange(2)
        words = generator.choices(["the", "film", "story", "was"], k=generator.randrange(1, 9))
        lines.append({"text": " ".join([*words, ["bad", "good"][label]]), "label": label})
    for split, rows in (("train", lines[:64]), ("validation", lines[64:])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_manifest(folder, kind="task", task="classification", labels=["bad", "good"])
    return folder


def save_text_task(folder: Path) -> Path:
    """Save a made-up text that a tiny random model can learn: a sentence of few forms, over and over."""
    from llm_sparsity.storage.files import write_manifest

    folder.mkdir(parents=True, exist_ok=True)
    generator = random.Random(0)
    for split, lines in (("train", 160), ("test", 40)):
        rows = [{"text": f"the film was {generator.choice(['very', 'not'])} good"} for _ in range(lines)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_manifest(folder, kind="task", task="language-model")
    return folder


def model_of(tensors: "dict[str, torch.Tensor]", folder: Path, model_type: str = "bert") -> Path:
    """A model folder of given tensors; nothing else about it is real."""
    from llm_sparsity.storage.files import write_manifest
    from tests import weights

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    weights.save(folder, tensors, sparse=False)
    write_manifest(folder, kind="model")
    return folder


def query(layer: int) -> str:
    """The name of a matrix that every scope of matrices holds."""
    return f"encoder.layer.{layer}.attention.self.query.weight"
