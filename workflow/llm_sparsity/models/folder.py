"""A model folder, read once and passed on in place of its path."""

from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_sparsity.jobs.errors import UserError
from llm_sparsity.models.roles import TensorRole
from llm_sparsity.storage.files import MANIFEST, read_json, read_manifest

if TYPE_CHECKING:
    from llm_sparsity.models.checkpoint import ModelReader
    from llm_sparsity.models.structure import Structure


class ModelFolder:
    """The folder of a transformers model, dense or pruned: configuration, structure, manifest, tensor roles, tokenizer.

    It reads nothing twice, and imports neither torch nor transformers before structure, weights or tokenizer are used.

    Args:
        path: the folder.

    Attributes:
        config: what config.json holds.

    Raises:
        UserError: there is no config.json, or its weights are quantised.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = path = Path(path)
        try:
            self.config: dict[str, Any] = read_json(path / "config.json")
            _ = self.config["model_type"]
        except (FileNotFoundError, NotADirectoryError):
            nearest = f"; did you mean {path / 'model'}?" if (path / "model/config.json").exists() else ""
            raise UserError(f"{path}: no model folder, which has config.json{nearest}") from None
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"{path}/config.json: not the configuration of a transformers model; expected `model_type`"
            ) from None
        if kind := _quantisation(self.config):
            raise UserError(
                f"{path}/config.json: a quantised checkpoint ({kind}), whose weights are codes; "
                "choose the unquantised checkpoint that it was made from"
            )

    @classmethod
    def of(cls, folder: "ModelFolder | Path | str") -> "ModelFolder":
        """A model folder from its path, or as it is."""
        return folder if isinstance(folder, ModelFolder) else cls(folder)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """The folder's own name, for messages."""
        return self.path.name

    @property
    def model_type(self) -> str:
        """`model_type` of config.json."""
        return str(self.config["model_type"])

    @property
    def class_name(self) -> str:
        """The class of transformers that saved the model, as config.json states; empty if it states none."""
        return str((self.config.get("architectures") or [""])[0])

    @cached_property
    def model_config(self) -> Any:
        """The configuration as an object of transformers.

        Raises:
            UserError: transformers does not know the model type, or the values.
        """
        import transformers

        if self.model_type not in transformers.CONFIG_MAPPING:
            code = " and its own code, which is never run," if self.config.get("auto_map") else ""
            raise UserError(
                f"{self.path}/config.json: model type {self.model_type!r}{code} is not one that transformers "
                f"{transformers.__version__} knows; choose another model"
            )
        try:
            return transformers.AutoConfig.from_pretrained(self.path, trust_remote_code=False)
        except Exception as error:  # each class checks its values in its own way
            raise UserError(f"{self.path}/config.json: {' '.join(str(error).split())}; correct it") from error

    @cached_property
    def structure(self) -> "Structure":
        """What its tensors are for.

        Raises:
            UserError: see `derivation.derive`.
        """
        from llm_sparsity.models.derivation import derive

        try:
            return derive(self.model_config)
        except UserError as error:
            raise UserError(f"{self.path}/config.json: {error}") from error

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What manifest.json holds.

        Raises:
            UserError: there is none, so the stage that makes the folder has not finished.
        """
        return read_manifest(self.path)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What a folder made from this one repeats: the manifest without its list of files.

        A folder as transformers saves it has no manifest, and its configuration says what it is.
        """
        if not (self.path / MANIFEST).exists():
            return {"kind": "model", "architecture": self.structure.architecture, "model_type": self.model_type}
        return {key: value for key, value in self.manifest.items() if key not in ("files", "bytes")}

    @property
    def pruned(self) -> dict[str, Any] | None:
        """What the manifest says about removed weights; None for a dense model."""
        return self.facts.get("pruned")

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight files."""
        from llm_sparsity.storage.container import weight_files

        return sum(file.stat().st_size for file in weight_files(self.path))

    def open(self) -> "ModelReader":
        """A reader of its tensors, by the names that they have in the model."""
        from llm_sparsity.models.checkpoint import ModelReader

        return ModelReader(self.path, self.structure)

    def role(self, name: str) -> TensorRole | None:
        """The role of a tensor; None if it is never pruned."""
        return self.structure.role(name)

    def in_scope(self, name: str, scope: str) -> bool:
        """Whether a tensor belongs to a scope, see `TensorRole.in_scope`."""
        role = self.role(name)
        return role is not None and role.in_scope(scope)

    def roles(self, names: Iterable[str], scope: str = "all") -> dict[str, TensorRole]:
        """The roles of the tensors of a scope among a checkpoint's names, tied tensors once."""
        unique = self.structure.without_copies(names)
        return {name: role for name in unique if (role := self.role(name)) and role.in_scope(scope)}

    def why_unobserved(self, name: str, names: Iterable[str] = ()) -> str:
        """Why the layer of a matrix cannot run by itself, so that its inputs are observed; "" if it can.

        Args:
            name: of a tensor.
            names: of the checkpoint's tensors.
        """
        structure = self.structure
        if structure.repeats > 1:
            return f"its layer runs {structure.repeats} times, with other inputs each time"
        if not structure.is_chain:
            return "the layers are not one list that runs in order"
        if getattr(self.model_config, "num_kv_shared_layers", 0):
            return "the last layers use keys and values of earlier ones, and cannot run without them"
        if fused := next((other for other in names if structure.is_fused(other)), None):
            return f"{fused} is fused with others when the model is loaded"
        matrix = structure.matrix(name)
        return "" if matrix and matrix.is_linear else "it is not the weight of a linear layer"

    @property
    def max_length(self) -> int | None:
        """The longest sequence that the model has positions for, in tokens; None if it sets no limit."""
        # The first is also the name of GPT-2's n_positions. T5's has another meaning: its positions are relative.
        keys = ("max_position_embeddings", "max_seq_len")
        longest = next((found for key in keys if (found := getattr(self.model_config, key, None))), 0)
        return int(longest) - self.structure.first_position if longest > 0 else None  # -1 of XLNet: no limit

    @property
    def padding_side(self) -> str:
        """The side on which a classifier's batches are padded: "right", as decoders' heads look for the last token.

        XLNet's head reads the last position, whatever stands there.
        """
        return "left" if getattr(self.model_config, "summary_type", "") == "last" else "right"

    def check_length(self, key: str, value: int) -> None:
        """Refuse a sequence length that the model has no positions for.

        Args:
            key: the setting, for the message.
            value: its value, in tokens.

        Raises:
            UserError: `value` is larger than `max_length`.
        """
        if self.max_length and value > self.max_length:
            raise UserError(f"{key}: found {value}, but {self.name} allows {self.max_length} tokens at most; lower it")

    @cached_property
    def token_types(self) -> int:
        """The number of token types (segments) that the model tells apart; 0 if it knows none."""
        if self.model_config.model_type == "xlnet":
            return 4  # those of two texts, of the token for the class and of padding; it compares them, and embeds none
        return int(getattr(self.model_config, "type_vocab_size", 0))

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, with a padding token: a decoder that has none pads with its end-of-text token.

        Raises:
            UserError: transformers cannot load it, or it has neither token.
        """
        import transformers

        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(self.path, trust_remote_code=False)
        except Exception as error:  # each tokenizer class fails in its own way
            raise UserError(f"{self.path}: {_tokenizer_problem(self.path, error)}") from error
        if tokenizer.pad_token_id is None:
            if tokenizer.eos_token_id is None:
                raise UserError(
                    f"{self.path}: the tokenizer has neither a padding nor an end token; "
                    "set `pad_token` in tokenizer_config.json to one of its tokens"
                )
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer


def _quantisation(config: dict[str, Any]) -> str | None:
    """The kind of quantisation that a configuration states, such as "gptq, 4 bits"; None if it states none."""
    keys = ("quantization_config", "compression_config", "quantization")  # the last one is MLX's
    entry = next((config[key] for key in keys if config.get(key)), None)
    if entry is None:
        return None
    found = entry if isinstance(entry, dict) else {"quant_method": entry}
    kind = next((str(found[key]) for key in ("quant_method", "format", "quant_type") if found.get(key)), "unknown kind")
    bits = found.get("bits") or next((bits for bits in (4, 8) if found.get(f"load_in_{bits}bit")), None)
    return f"{kind}, {bits} bits" if bits else kind


def _tokenizer_problem(path: Path, error: Exception) -> str:
    """Why a tokenizer cannot be loaded, and what to do."""
    if not (path / "tokenizer.json").exists() and (models := sorted(path.glob("*.model"))):
        return (
            f"{models[0].name} is a sentencepiece file, and there is no tokenizer.json; convert it once, where "
            "sentencepiece and protobuf are installed: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    with suppress(FileNotFoundError):
        try:
            read_json(path / "tokenizer.json")
        except ValueError:
            return "tokenizer.json is no JSON: cut off, empty, or a pointer of Git LFS; download it again"
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"transformers cannot load the tokenizer: {reason[:300]}; save it with `save_pretrained`"
