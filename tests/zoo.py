"""Tiny models with RANDOM weights of many types, as transformers saves them: one entry of `ZOO` a type.

`python -m tests.zoo` writes the table of docs/models.md.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest

WORDS = {"vocab_size": 26, "pad_token_id": 0, "bos_token_id": 4, "eos_token_id": 5}
BASIC = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES = BASIC | {"intermediate_size": 64}
GROUPED = SIZES | {"num_key_value_heads": 2}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "decoder_start_token_id": 5, "forced_eos_token_id": 5,
}  # fmt: skip
DEBERTA = {
    "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8, "max_relative_positions": -1,
    "position_biased_input": False, "norm_rel_ebd": "layer_norm", "share_att_key": True, "type_vocab_size": 0,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

# Type -> class of transformers, values of its configuration.
ZOO: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForMaskedLM", SIZES),
    "roberta": ("RobertaForMaskedLM", SIZES),
    "xlm-roberta": ("XLMRobertaForMaskedLM", SIZES),
    "electra": ("ElectraForMaskedLM", SIZES | {"embedding_size": 16}),
    "distilbert": ("DistilBertForMaskedLM", {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}),
    "gpt2": ("GPT2LMHeadModel", GPT),
    "llama": ("LlamaForCausalLM", GROUPED),
    "mistral": ("MistralForCausalLM", GROUPED),
    "qwen2": ("Qwen2ForCausalLM", GROUPED),
    "qwen3": ("Qwen3ForCausalLM", GROUPED | {"head_dim": 16}),
    "opt": ("OPTForCausalLM", BASIC | {"ffn_dim": 64, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "gpt_neox": ("GPTNeoXForCausalLM", SIZES),
    "bart": ("BartForConditionalGeneration", BART),
    "albert": ("AlbertForMaskedLM", SIZES | {"embedding_size": 16}),
    "bloom": ("BloomForCausalLM", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "camembert": ("CamembertForMaskedLM", SIZES),
    "codegen": ("CodeGenForCausalLM", GPT | {"rotary_dim": 4}),
    "cohere": ("CohereForCausalLM", GROUPED),
    "deberta": ("DebertaForMaskedLM", SIZES),
    "deberta-v2": ("DebertaV2ForMaskedLM", SIZES | DEBERTA),
    "ernie": ("ErnieForMaskedLM", SIZES),
    "exaone4": ("Exaone4ForCausalLM", GROUPED),
    "falcon": ("FalconForCausalLM", BASIC),
    "gemma": ("GemmaForCausalLM", GROUPED | {"head_dim": 16}),
    "gemma2": ("Gemma2ForCausalLM", GROUPED | {"head_dim": 16}),
    "gemma3_text": ("Gemma3ForCausalLM", GROUPED | {"head_dim": 16}),
    "glm": ("GlmForCausalLM", GROUPED | {"head_dim": 8}),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", GPT),
    "gpt_neo": (
        "GPTNeoForCausalLM",
        {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    ),
    "gpt_oss": ("GptOssForCausalLM", GROUPED | {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "gptj": ("GPTJForCausalLM", GPT | {"rotary_dim": 4}),
    "granite": ("GraniteForCausalLM", GROUPED),
    "granitemoe": ("GraniteMoeForCausalLM", GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "helium": ("HeliumForCausalLM", GROUPED | {"head_dim": 8}),
    "mbart": ("MBartForConditionalGeneration", BART),
    "mixtral": ("MixtralForCausalLM", GROUPED | {"num_local_experts": 4}),
    "modernbert": ("ModernBertForMaskedLM", SIZES),
    "mpnet": ("MPNetForMaskedLM", SIZES),
    "mpt": ("MptForCausalLM", {"d_model": 32, "n_layers": 2, "n_heads": 4}),
    "mt5": ("MT5ForConditionalGeneration", T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "nemotron": ("NemotronForCausalLM", GROUPED),
    "olmo": ("OlmoForCausalLM", GROUPED),
    "olmo2": ("Olmo2ForCausalLM", GROUPED),
    "olmoe": ("OlmoeForCausalLM", GROUPED | {"num_experts": 4, "num_experts_per_tok": 2}),
    "pegasus": ("PegasusForConditionalGeneration", BART),
    "phi": ("PhiForCausalLM", SIZES),
    "phi3": ("Phi3ForCausalLM", GROUPED),
    "qwen2_moe": ("Qwen2MoeForCausalLM", GROUPED | EXPERTS | {"shared_expert_intermediate_size": 32}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", GROUPED | EXPERTS),
    "rembert": ("RemBertForMaskedLM", SIZES | {"input_embedding_size": 16, "output_embedding_size": 16}),
    "roformer": ("RoFormerForMaskedLM", SIZES | {"embedding_size": 32}),
    "smollm3": ("SmolLM3ForCausalLM", GROUPED),
    "stablelm": ("StableLmForCausalLM", GROUPED),
    "starcoder2": ("Starcoder2ForCausalLM", GROUPED),
    "t5": ("T5ForConditionalGeneration", T5),
    "xlnet": ("XLNetLMHeadModel", {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64}),
}

# Types that take every path through the code; tests of a whole stage leave the others to `./run test --exhaustive`.
COMMON = ("bert", "gpt2", "llama", "albert", "mixtral", "modernbert", "t5")
EVERY = [kind if kind in COMMON else pytest.param(kind, marks=pytest.mark.exhaustive) for kind in ZOO]
# What a person would call these; others are decoders.
ENCODERS = {
    "bert", "roberta", "xlm-roberta", "electra", "distilbert", "albert", "camembert", "deberta", "deberta-v2", "ernie",
    "modernbert", "mpnet", "rembert", "roformer", "xlnet",
}  # fmt: skip
ENCODER_DECODERS = {"bart", "mbart", "mt5", "pegasus", "t5"}


PACKED = {"mlp": "packs several matrices"}
# Types whose heads or neurons cannot be removed -> scope -> the reason.
WHOLE = {
    "bloom": {"attention": "BloomModel does not run with fewer heads"},
    "codegen": {"attention": "layout of h.0.attn.qkv_proj"},
    "deberta": {"attention": "q_bias belongs to several heads"},
    "falcon": {"attention": "layout of h.0.self_attention.query_key_value"},
    "gpt_bigcode": {"attention": "layout of h.0.attn.c_attn"},
    "gpt_oss": {"attention": "sinks belongs to several heads", **PACKED},
    "mpnet": {"attention": "relative_attention_bias has a value for each head"},
    "mpt": {"attention": "MptModel does not run with fewer heads"},
    "mt5": {"attention": "relative_attention_bias has a value for each head"},
    "olmo2": {"attention": "Olmo2Model does not run with fewer heads"},
    "olmoe": {"attention": "OlmoeModel does not run with fewer heads", **PACKED},
    "t5": {"attention": "relative_attention_bias has a value for each head"},
    "xlnet": {"attention": "packs several matrices"},
    **dict.fromkeys(("granitemoe", "mixtral", "qwen2_moe", "qwen3_moe"), PACKED),
}

PAGE = Path(__file__).parent.parent / "docs/models.md"
PARTS = {"attention": "heads", "mlp": "neurons"}
START = "| model type | architecture |"


def architecture(kind: str) -> str:
    """The architecture of a type in `ZOO`."""
    return "encoder-decoder" if kind in ENCODER_DECODERS else "encoder" if kind in ENCODERS else "decoder"


def make(kind: str, **values: Any) -> Any:
    """A model of a type in `ZOO` with random weights; no bias and no norm is left at its trivial start."""
    import torch
    import transformers

    model_class = getattr(transformers, ZOO[kind][0])
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**WORDS | ZOO[kind][1] | values)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    torch.random.set_rng_state(state)
    return model


def save(kind: str, folder: Path, tokenizer: Path, **values: Any) -> Path:
    """Save a model of a type in `ZOO` as a model folder, with the tokenizer of another folder."""
    from llm_sparsity.storage.files import write_manifest

    model = make(kind, **values)
    model.save_pretrained(folder)
    for path in tokenizer.glob("*token*"):
        shutil.copy(path, folder)
    write_manifest(
        folder,
        kind="model",
        architecture=architecture(kind),
        model_type=model.config.model_type,
        parameters=sum(weight.numel() for weight in model.parameters()),
        source={"folder": "random weights"},
    )
    return folder


def table() -> str:
    """The table of docs/models.md: what is counted in models of each type, and what structured pruning removes."""
    from llm_sparsity.models.derivation import derive

    rows = [f"{START} attention | feed-forward | in no scope | structured |", "|---|---|---|---|---|---|"]
    for kind in sorted(ZOO):
        model = make(kind)
        known = derive(model.config)
        dims = {known.body_name(name): weight.dim() for name, weight in model.named_parameters()}
        matrices = [
            [dims[n] for n, role in known.roles.items() if (role.layer, role.part) == (0, part)] for part in PARTS
        ]
        counts = [f"{len(each)}{' (packed)' if 3 in each else ''}" for each in matrices]
        left = [name for name, dim in dims.items() if name and dim > 1 and name not in known.roles]
        words = dict.fromkeys(f"`{name.removesuffix('.weight').rpartition('.')[2]}`" for name in left)
        rows.append(
            f"| `{kind}` | {architecture(kind)} | {' | '.join(counts)} | {', '.join(words)} | {_removed(kind)} |"
        )
    return "\n".join(rows)


def _removed(kind: str) -> str:
    whole = WHOLE.get(kind, {})
    kept = " and ".join(word for part, word in PARTS.items() if part not in whole)
    return "; ".join([kept, *(f"no {PARTS[part]}: {reason}" for part, reason in whole.items())]).removeprefix("; ")


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    old = text[text.index(START) :].partition("\n\n")[0]
    PAGE.write_text(text.replace(old, table().rstrip()), encoding="utf-8")
