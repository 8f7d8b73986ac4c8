"""The outputs of a plain model folder on a few sentences, by transformers alone; nothing here imports this library.

`python outputs.py FOLDER FILE` runs in a process of its own, so that what it finds is what any other program finds.
"""

import sys
from pathlib import Path
from typing import Any

SENTENCES = (
    "The film is a delight from beginning to end.",
    "Half of the weights are gone, and the story is not very good.",
    'In 1843, Ada Lovelace wrote: "We may say most aptly that the Analytical Engine weaves algebraical patterns."',
)


def outputs(model: Any, tokenizer: Any) -> "dict[str, Any]":
    """The first output of a model for each sentence, float32: its logits, or its hidden states if it has no head."""
    import torch

    model = model.float().eval()
    found = {}
    for number, sentence in enumerate(SENTENCES):
        inputs = tokenizer(sentence, return_tensors="pt", truncation=True, max_length=_max_length(model.config))
        given = {"input_ids": inputs["input_ids"]}
        if model.config.is_encoder_decoder and not type(model).__name__.endswith("ForSequenceClassification"):
            given["decoder_input_ids"] = inputs["input_ids"]
        with torch.inference_mode():
            found[f"ids.{number}"] = inputs["input_ids"]
            found[f"outputs.{number}"] = model(**given)[0].contiguous()
    return found


def _max_length(config: Any) -> int:
    """At most 32 tokens; a few positions are left for models that begin to count after the padding token."""
    positions = getattr(config, "max_position_embeddings", None) or 0
    return min(32, positions - 2) if positions > 2 else 32  # XLNet has -1: no limit


def main() -> None:
    """Load a folder as config.json says, and write the outputs to a file."""
    import torch
    import transformers
    from safetensors.torch import save_file

    folder, file = map(Path, sys.argv[1:])
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    config = transformers.AutoConfig.from_pretrained(folder)
    model_class = getattr(transformers, config.architectures[0])
    model, info = model_class.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    if info["unexpected_keys"] or info["mismatched_keys"] or any("pooler" not in key for key in info["missing_keys"]):
        sys.exit(f"transformers does not load all tensors: {info}")
    save_file(outputs(model, transformers.AutoTokenizer.from_pretrained(folder)), file)


if __name__ == "__main__":
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).resolve().parent]
    sys.modules["llm_sparsity"] = None  # type: ignore[assignment]  # it cannot be imported, wherever it is installed
    main()
