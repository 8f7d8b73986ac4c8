import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import transformers
from transformers import DataCollatorWithPadding

from llm_sparsity.data import tokens
from llm_sparsity.data.tasks import Examples, TaskFolder
from llm_sparsity.data.tokens import TokenSplit, seen, tokenize
from llm_sparsity.jobs.errors import UserError
from llm_sparsity.jobs.lock import this_process
from llm_sparsity.models.folder import ModelFolder
from llm_sparsity.storage.files import write_manifest
from tests.tiny import save_mood_task


@pytest.fixture
def model(tiny_model: Callable[[str], Path]) -> ModelFolder:
    return ModelFolder(tiny_model("bert"))


@pytest.fixture
def task(tmp_path: Path) -> TaskFolder:
    return TaskFolder(save_mood_task(tmp_path / "task"))


@pytest.fixture
def split(model: ModelFolder) -> Callable[..., TokenSplit]:
    """Sentences of given token ids, padded by [PAD], 0."""

    def make(rows: list[list[int]], labels: list[int] | None = None) -> TokenSplit:
        data = datasets.Dataset.from_dict({"input_ids": rows, "labels": labels or [0] * len(rows)})
        return TokenSplit(data, DataCollatorWithPadding(model.tokenizer))

    return make


def test_a_task_is_tokenised_once_and_read_back_as_the_tokenizer_gave_it(
    model: ModelFolder, task: TaskFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tokenize(model, task, tmp_path, max_length=6, code="")
    examples = task.examples("train")
    given = model.tokenizer(examples.texts, truncation=True, max_length=6)["input_ids"]
    assert len(found.train) == 64
    assert found.num_labels == 2
    assert found.train.labels == examples.labels
    for i, ids in enumerate(given):
        inputs, labels = found.train.batch(np.array([i]))
        assert {name: value.tolist() for name, value in inputs.items()} == {"input_ids": [ids]}
        assert labels.tolist() == [examples.labels[i]]
    monkeypatch.setattr(tokens, "_sentence_splits", lambda *_: pytest.fail("tokenised again"))
    assert tokenize(model, task, tmp_path, max_length=6, code="").key == found.key


def append(folder: Path, split: str, rows: list[dict[str, Any]]) -> TaskFolder:
    """Add rows to a split of a task."""
    with (folder / f"{split}.jsonl").open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    return TaskFolder(folder)


def test_validation_examples_that_are_trained_on_are_counted(model: ModelFolder, tmp_path: Path) -> None:
    """With another label, or without one, and as the model reads them: cut to the same tokens."""
    folder = save_mood_task(tmp_path / "task")
    before = seen(tokenize(model, TaskFolder(folder), tmp_path, max_length=16, code=""))
    rows = [{"text": "the plot was a fine great story", "label": 1}, {"text": "good good good good", "label": 0}]
    more = append(folder, "validation", rows)
    assert seen(tokenize(model, more, tmp_path, max_length=16, code="1")) == before
    other = save_mood_task(tmp_path / "other")
    append(other, "train", [{"text": f"{row['text']} film"} for row in rows])
    unlabelled = append(other, "train", [{"text": f" {row['text']}\n"} for row in [*rows, {"text": ""}]])
    found = tokenize(model, more, tmp_path, max_length=16, code="1", text=unlabelled)
    assert seen(found) >= before + 2
    assert found.train.unlabelled == 64 + 4
    both = append(folder, "train", [row | {"label": 1 - row["label"]} for row in rows])
    assert seen(tokenize(model, both, tmp_path, max_length=16, code="2")) == before + 2


def test_windows_of_a_text_that_is_trained_on_are_counted(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """Wherever they begin: the training windows have another length."""
    model, words = ModelFolder(tiny_model("gpt2")), "the film was good and the story was bad but the plot is great"
    generator = np.random.default_rng(0)
    ours, theirs = (" ".join(generator.permuted(words.split() * 40)) for _ in range(2))
    (folder := tmp_path / "text").mkdir()
    for split, text in (("train", f"a film {ours}"), ("test", f"{ours} {theirs}")):
        (folder / f"{split}.jsonl").write_text(json.dumps({"text": text}) + "\n")
    write_manifest(folder, kind="task", task="language-model")
    windows = {"sequence_length": 40, "max_tokens": None}
    found = tokenize(model, TaskFolder(folder), tmp_path, max_length=64, code="", evaluation=windows)
    assert 0 < seen(found) < len(found.validation)


def test_another_length_task_model_or_code_is_tokenised_anew(
    model: ModelFolder, tiny_model: Callable[[str], Path], task: TaskFolder
) -> None:
    keys = {
        tokens._key(model, task, None, 6, "", None),
        tokens._key(model, task, None, 7, "", None),
        tokens._key(ModelFolder(tiny_model("gpt2")), task, None, 6, "", None),
        tokens._key(model, task, None, 6, "x", None),
        tokens._key(model, task, task, 6, "", None),
    }
    assert len(keys) == 5


@pytest.mark.exhaustive
def test_processes_that_tokenise_at_once_leave_one_whole_folder(
    model: ModelFolder, task: TaskFolder, tmp_path: Path, root: Path
) -> None:
    code = f"""
from pathlib import Path
from llm_sparsity.data.tasks import Examples, TaskFolder
from llm_sparsity.data.tokens import tokenize
from llm_sparsity.models.folder import ModelFolder
made = tokenize(ModelFolder(Path({str(model)!r})), TaskFolder(Path({str(task)!r})), Path("."), max_length=6, code="")
print(made.key, len(made.train))
"""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(root / "workflow")},
            stdout=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    printed = {process.communicate()[0].strip() for process in started}
    assert len(printed) == 1
    key, rows = printed.pop().split()
    assert rows == "64"
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == [key]


def test_a_killed_attempt_does_not_count(model: ModelFolder, task: TaskFolder, tmp_path: Path) -> None:
    key, dead = tokens._key(model, task, None, 6, "", None), subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    lock = json.loads(this_process()) | {"pid": dead.pid}
    left = tmp_path / "tokens" / f".{key}.{dead.pid}@{socket.gethostname()}.tmp"
    left.mkdir(parents=True)
    (left / "dataset_dict.json").write_text("half")
    (tmp_path / "tokens" / f"{key}.lock").write_text(json.dumps(lock))
    assert len(tokenize(model, task, tmp_path, max_length=6, code="").train) == 64
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == [key]


def test_what_another_node_is_writing_stays(model: ModelFolder, task: TaskFolder, tmp_path: Path) -> None:
    other = tmp_path / "tokens" / f".{tokens._key(model, task, None, 6, '', None)}.17@elsewhere.tmp"
    other.mkdir(parents=True)
    tokenize(model, task, tmp_path, max_length=6, code="")
    assert other.exists()


def test_tokens_are_not_kept_once_another_process_has_taken_over(
    model: ModelFolder, task: TaskFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tokens._key(model, task, None, 6, "", None)
    whole = tokens._sentence_splits

    def suspended(*args: Any) -> Any:
        (tmp_path / "tokens" / f"{key}.lock").write_text("another")
        return whole(*args)

    monkeypatch.setattr(tokens, "_sentence_splits", suspended)
    with pytest.raises(UserError, match="taken over by another copy of this job"):
        tokenize(model, task, tmp_path, max_length=6, code="")
    assert not (tmp_path / "tokens" / key).exists()


def test_pairs_keep_their_types(model: ModelFolder, tmp_path: Path) -> None:
    model.tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]  # as BERT's own tokenizer
    for name in tokens.SPLITS:
        rows = [{"text": "good film", "text_pair": "bad", "label": label} for label in (0, 1)]
        rows.append({"text": "good", "text_pair": "bad", "label": 1})
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_manifest(tmp_path, kind="task", task="classification", labels=["no", "yes"])
    train = tokenize(model, TaskFolder(tmp_path), tmp_path, max_length=9, code="").train
    inputs, _ = train.batch(np.array([0]))
    assert inputs["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1]]
    inputs, _ = train.batch(np.array([0, 2]))
    assert inputs["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0]]
    assert inputs["attention_mask"].tolist() == [[1] * 6, [1] * 5 + [0]]


def pair_task(folder: Path, first: str, second: str, **facts: Any) -> TaskFolder:
    """A task of one pair, in both splits."""
    folder.mkdir(parents=True)
    rows = [{"text": first, "text_pair": second, "label": label} for label in (0, 1)]
    for split in tokens.SPLITS:
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_manifest(folder, kind="task", task="classification", labels=["no", "yes"], **facts)
    return TaskFolder(folder)


def test_a_long_pair_keeps_its_separator(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    model = ModelFolder(tiny_model("gpt2"))
    task = pair_task(tmp_path / "task", "the film was good " * 9, "the film was bad", separator=" very ")
    between = model.tokenizer("very", add_special_tokens=False)["input_ids"]
    for length in (8, 64):
        for side in ("left", "right"):
            model.tokenizer.truncation_side = side
            ids = tokens.sentences(model, task, "train", length)["input_ids"][0]
            assert len(ids) <= length
            assert between[0] in ids


def test_a_separator_may_be_a_token_of_the_tokenizers_own(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    model = ModelFolder(tiny_model("gpt2"))
    end = model.tokenizer.eos_token
    task = pair_task(tmp_path / "task", f"good {end}", "bad", separator=end)
    without = pair_task(tmp_path / "without", f"good {end}", "bad")
    counts = [
        tokens.sentences(model, each, "train", 64)["input_ids"][0].count(model.tokenizer.eos_token_id)
        for each in (task, without)
    ]
    assert counts[0] == counts[1] + 1, "within a text it is text"


def test_a_mark_of_one_letter_stays_whole(tiny_model: Callable[[str], Path]) -> None:
    tokenizer = ModelFolder(tiny_model("gpt2")).tokenizer
    tokenizer.add_special_tokens({"pad_token": "!"})
    [row] = tokens._encode(tokenizer, Examples(["good! film"], None, [0]), 30)["input_ids"]
    assert row == tokenizer("good! film")["input_ids"]


def test_an_encoder_and_a_decoder_of_one_tokenizer_have_tokens_of_their_own(
    model: ModelFolder, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """A separator is the decoder's alone."""
    task = pair_task(tmp_path / "task", "good", "bad", separator=" very ")
    folder = shutil.copytree(tiny_model("gpt2"), tmp_path / "model")
    other = shutil.copytree(model.path, tmp_path / "encoder")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, other / name)
    for each in (folder, other):
        (each / "generation_config.json").unlink(missing_ok=True)
        write_manifest(each, kind="model", architecture="decoder" if each is folder else "encoder")
    one, two = (tokenize(ModelFolder(each), task, tmp_path, max_length=9, code="") for each in (folder, other))
    assert one.key != two.key
    assert len(one.train.rows[0]) > len(two.train.rows[0])


@pytest.mark.parametrize(("length", "least"), [(1, 5), (4, 5)])
def test_a_pair_needs_room_for_a_token_of_each(length: int, least: int, model: ModelFolder, tmp_path: Path) -> None:
    task = pair_task(tmp_path / "task", "good film", "bad film")
    with pytest.raises(UserError, match=f"^max_length: found {length}, but a pair of task takes {least} "):
        tokens.sentences(model, task, "train", length)
    assert len(tokens.sentences(model, task, "train", least)["input_ids"][0]) == least


def test_a_mask_is_made_whatever_the_tokenizer_names(model: ModelFolder, task: TaskFolder, tmp_path: Path) -> None:
    folder = ModelFolder(shutil.copytree(model.path, tmp_path / "model"))
    folder.tokenizer.model_input_names = ["input_ids"]
    found = tokenize(folder, task, tmp_path, max_length=16, code="")
    lengths = found.train.lengths
    inputs, _ = found.train.batch(np.array([lengths.argmin(), lengths.argmax()]))
    assert inputs["attention_mask"].sum(1).tolist() == [lengths.min(), lengths.max()]


def test_a_sentence_without_a_token_is_named(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    folder, task = (
        shutil.copytree(tiny_model("gpt2"), tmp_path / "model"),
        TaskFolder(save_mood_task(tmp_path / "task")),
    )
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"post_processor": None}))  # no special tokens
    append(task.path, "validation", [{"text": "", "label": 1}])
    with pytest.raises(UserError, match=r"validation\.jsonl: line 33 has no token for model; remove the row from the"):
        tokenize(ModelFolder(folder), task, tmp_path, max_length=16, code="")


def test_sentences_without_labels_follow_those_of_the_task(
    model: ModelFolder, task: TaskFolder, tmp_path: Path
) -> None:
    pairs = TaskFolder(save_mood_task(tmp_path / "pairs"))
    for split in ("train", "validation"):
        rows = [json.loads(line) | {"text_pair": "a good day"} for line in (pairs.path / f"{split}.jsonl").open()]
        (pairs.path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_manifest(pairs.path, kind="task", task="classification", labels=["bad", "good"])
    for one, other in ((task, pairs), (pairs, task)):
        own = tokenize(model, one, tmp_path, max_length=8, code="")
        both = tokenize(model, one, tmp_path, max_length=8, code="", text=one)
        assert both.key != own.key
        assert both.train.labels == [*(own.train.labels or []), *[tokens.UNLABELLED] * 64]
        ids = own.train.data["input_ids"][:]
        assert both.train.data["input_ids"][:] == [*ids, *ids]
        assert both.validation.labels == own.validation.labels
        with pytest.raises(UserError, match=r"has single sentences where .* has pairs, or the reverse; name another"):
            tokenize(model, one, tmp_path, max_length=8, code="", text=other)


def test_token_types_are_for_models_that_have_them(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """GPT-2 adds the embeddings of words that the types name: its tokenizer may give them all the same."""
    for name in tokens.SPLITS:
        (tmp_path / f"{name}.jsonl").write_text('{"text": "good film", "text_pair": "bad", "label": 0}\n')
    write_manifest(tmp_path, kind="task", task="classification", labels=["no", "yes"])
    for kind in ("gpt2", "distilbert", "bart", "bert"):
        for types in ("token_type_ids", ""):  # ALBERT's tokenizer makes them, but does not name them
            model = ModelFolder(tiny_model(kind))
            model.tokenizer.model_input_names = [*filter(None, ["input_ids", types]), "attention_mask"]
            train = tokenize(model, TaskFolder(tmp_path), tmp_path, max_length=9, code=types).train
            assert ("token_type_ids" in train.batch(np.array([0]))[0]) == (kind == "bert")


def test_types_that_no_configuration_counts(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """XLNet compares types, of which its configuration says nothing; BigBird has some, and is never given any."""
    task = pair_task(tmp_path / "task", "good film", "bad")
    for config, given in ((transformers.XLNetConfig(), True), (transformers.BigBirdConfig(), False)):
        model = ModelFolder(tiny_model("bert"))
        vars(model)["model_config"] = config
        model.tokenizer.model_input_names = ["input_ids", "attention_mask"]
        assert ("token_type_ids" in tokens.sentences(model, task, "train", 9)) == given


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "bart"])
def test_a_special_token_in_a_text_is_text(kind: str, tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """So that a sentence holds as many of them as any other: BART cannot classify a batch otherwise."""
    tokenizer = ModelFolder(tiny_model(kind)).tokenizer
    plain = Examples(["good film", "bad"], ["the movie", "it was"], [0, 1])
    expected = tokens._encode(tokenizer, plain, 30)["input_ids"]
    special = tokenizer.all_special_tokens
    spelled = Examples(
        [*plain.texts, f"good {' '.join(special)} film", special[0]], [*plain.pairs, "a", special[-1]], [0] * 4
    )
    found = tokens._encode(tokenizer, spelled, 30)["input_ids"]
    assert found[:2] == expected  # other rows are as before
    counts = {tuple(row.count(number) for number in tokenizer.all_special_ids) for row in found}
    assert len(counts) == 1


def test_a_special_token_that_was_added_is_a_marker(tiny_model: Callable[[str], Path]) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model("bert"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["[E1]", "[/E1]"]})
    [row] = tokens._encode(tokenizer, Examples(["the [E1] film [/E1] [SEP] was good"], None, [0]), 30)["input_ids"]
    assert row[1:5] == tokenizer.convert_tokens_to_ids(["the", "[E1]", "film", "[/E1]"])
    assert row.count(tokenizer.sep_token_id) == 1


@pytest.mark.parametrize("tokenizer_class", [transformers.MBartTokenizer, transformers.XLMRobertaTokenizer])
def test_a_special_token_that_is_a_piece_of_the_vocabulary_is_text_too(tokenizer_class: type) -> None:
    """The unigram model of sentencepiece finds `</s>` in a text although special tokens are split."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁good", "▁film", "▁", "<", "/", "s", ">"]
    tokenizer = tokenizer_class(vocab=[(piece, -float(number)) for number, piece in enumerate(pieces)])
    found = tokens._encode(tokenizer, Examples(["good film", "good </s> film"], None, [0, 1]), 30)["input_ids"]
    assert found[0] == tokenizer("good film")["input_ids"]
    assert [row.count(tokenizer.eos_token_id) for row in found] == [1, 1]


def test_a_label_that_the_task_does_not_have(model: ModelFolder, task: TaskFolder, tmp_path: Path) -> None:
    with (task.path / "train.jsonl").open("a") as file:
        file.write('{"text": "dull", "label": 2}\n')
    with pytest.raises(UserError, match=r"train\.jsonl: line 65 has label 2, but the task has 2 \(0 to 1\)"):
        tokenize(model, task, tmp_path, max_length=6, code="")


def test_sentences_are_padded_on_the_right_whatever_the_tokenizer_does(
    model: ModelFolder, task: TaskFolder, tmp_path: Path
) -> None:
    model.tokenizer.padding_side = "left"
    train = tokenize(model, task, tmp_path, max_length=12, code="").train
    order = np.argsort(train.lengths, kind="stable")
    inputs, _ = train.batch(order[[-1, 0]])
    assert inputs["attention_mask"][1].tolist() == sorted(inputs["attention_mask"][1].tolist(), reverse=True)


def test_batches_hold_every_example_once_and_similar_lengths(split: Callable[..., TokenSplit]) -> None:
    generator = np.random.default_rng(0)
    some = split([[0] * length for length in generator.integers(1, 100, 1000)])
    batches = list(some.shuffled(32, seed=1))
    assert sorted(np.concatenate(batches)) == list(range(1000))
    spread = [some.lengths[batch].max() - some.lengths[batch].min() for batch in batches]
    assert np.median(spread) < 10
    same, other = list(some.shuffled(32, seed=1)), list(some.shuffled(32, seed=2))
    assert all(np.array_equal(a, b) for a, b in zip(batches, same, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(batches, other, strict=True))


def test_padding_reaches_no_further_than_the_batch_and_only_padding_needs_a_mask(
    split: Callable[..., TokenSplit],
) -> None:
    some = split([[7, 8, 9], [5], list(range(20)), [1]], [1, 0, 1, 1])
    inputs, labels = some.batch(np.array([0, 1]))
    assert inputs["input_ids"].tolist() == [[7, 8, 9], [5, 0, 0]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert labels.tolist() == [1, 0]
    inputs, _ = some.batch(np.array([1, 3]))
    assert inputs["input_ids"].tolist() == [[5], [1]]
    assert "attention_mask" not in inputs
