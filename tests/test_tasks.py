"""Tasks: what becomes a prompt, that train and held-out never meet, and one clear error for every broken input."""

from __future__ import annotations

import csv
import itertools
import json
import struct
from collections import Counter
from pathlib import Path

import pytest

from relgrad.core import registry
from relgrad.core.errors import RelgradError
from relgrad.core.settings import Component, settings_of
from relgrad.core.types import Prompt
from relgrad.tasks import Task, dataset, digits, file, reasoning_gym

GSM8K = Path(__file__).resolve().parents[2] / "shared" / "data" / "gsm8k_train_2000.jsonl"


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def questions(number: int) -> list[dict]:
    return [{"prompt": f"{i} + {i} =", "answer": str(2 * i)} for i in range(number)]


def load_file(path: Path, seed: int = 0, **settings) -> Task:
    return file.load(file.Settings(path=path, **settings), seed)


def texts(prompts) -> list[str]:
    return [p.text for p in prompts]


# ---------------------------------------------------------------- files


def test_columns_and_ids_follow_the_rows(tmp_path):
    task = load_file(write_jsonl(tmp_path / "sums.jsonl", questions(3)), held_out_fraction=0)
    assert task.name == "sums"
    assert list(task.train) == [Prompt(f"{i} + {i} =", {"answer": str(2 * i)}, i) for i in range(3)]
    assert list(task.validation) == []


def test_every_format_gives_the_same_prompts(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = questions(4)
    write_jsonl(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    with (tmp_path / "a.csv").open("w", newline="") as out:
        writer = csv.DictWriter(out, ["prompt", "answer"])
        writer.writeheader()
        writer.writerows(rows)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    loaded = [load_file(tmp_path / f"a.{s}", held_out_fraction=0.5) for s in ("jsonl", "json", "csv", "parquet")]
    assert len(loaded[0].train) == len(loaded[0].validation) == 2
    assert all(task == loaded[0] for task in loaded)


def test_split_keeps_duplicates_on_one_side_and_has_the_asked_share(tmp_path):
    rows = [{"prompt": f"p{i % 50}", "copy": i} for i in range(200)]
    task = load_file(write_jsonl(tmp_path / "a.jsonl", rows), held_out_fraction=0.2)
    train, held_out = Counter(texts(task.train)), Counter(texts(task.validation))
    assert not set(train) & set(held_out)
    assert len(held_out) == 10
    assert set(train.values()) == set(held_out.values()) == {4}


def test_split_depends_on_the_seed_and_not_on_the_order(tmp_path):
    rows = questions(60)
    forward = write_jsonl(tmp_path / "a.jsonl", rows)
    backward = write_jsonl(tmp_path / "b.jsonl", rows[::-1])
    held_out = [
        set(texts(load_file(path, seed).validation)) for path, seed in [(forward, 1), (backward, 1), (forward, 2)]
    ]
    assert held_out[0] == held_out[1] != held_out[2]
    assert load_file(forward, 1) == load_file(forward, 1)


@pytest.mark.parametrize(("fraction", "expected"), [(0.01, 1), (0.5, 1), (0.99, 1)])
def test_both_sides_of_a_split_have_a_prompt(tmp_path, fraction, expected):
    task = load_file(write_jsonl(tmp_path / "a.jsonl", questions(2)), held_out_fraction=fraction)
    assert (len(task.train), len(task.validation)) == (1, expected)


def test_a_held_out_file_is_never_trained_on(tmp_path, caplog):
    train = write_jsonl(tmp_path / "train.jsonl", questions(5))
    held_out = write_jsonl(tmp_path / "test.jsonl", questions(2))
    task = load_file(train, held_out_path=held_out)
    assert [p.id for p in task.train] == [2, 3, 4]
    assert [p.id for p in task.validation] == [5, 6]
    assert "dropped 2 of 5" in caplog.text
    with pytest.raises(RelgradError, match="every training prompt is also held out"):
        load_file(held_out, held_out_path=train)


def test_limit_reads_the_first_rows(tmp_path):
    task = load_file(write_jsonl(tmp_path / "a.jsonl", questions(9)), limit=4, held_out_fraction=0)
    assert [p.id for p in task.train] == [0, 1, 2, 3]


def test_template_system_and_chat(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"question": "2 + 2?", "answer": 4}])
    plain = load_file(path, template="Question: {question}\nAnswer: {{}}", held_out_fraction=0).train[0]
    assert plain.content == "Question: 2 + 2?\nAnswer: {}"
    assert plain.columns == {"question": "2 + 2?", "answer": 4}
    user = {"role": "user", "content": "2 + 2?"}
    chat = load_file(path, prompt_column="question", chat=True, held_out_fraction=0).train[0]
    assert chat.content == [user]
    assert chat.columns == {"answer": 4}
    system = load_file(path, prompt_column="question", system="Be brief.", held_out_fraction=0).train[0]
    assert system.content == [{"role": "system", "content": "Be brief."}, user]


def test_chat_prompts_keep_their_own_system_message(tmp_path):
    user, own = {"role": "user", "content": "Hi"}, {"role": "system", "content": "Own."}
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": [user]}, {"prompt": [own, user]}])
    task = load_file(path, system="Given.", held_out_fraction=0)
    assert [p.content[0]["content"] for p in task.train] == ["Given.", "Own."]
    assert [len(p.content) for p in task.train] == [2, 2]


def test_a_column_that_some_rows_lack_is_none_there(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "a"}, {"prompt": "b", "answer": "x"}])
    assert [p.columns for p in load_file(path, held_out_fraction=0).train] == [{"answer": None}, {"answer": "x"}]


BROKEN = {
    "a.jsonl": [
        ('{"prompt": "a"}\n\n{"prompt": \n', r"a\.jsonl, line 3: not valid JSON"),
        ('{"prompt": "a"}\n[1]', r"line 2: a line is one JSON object, received list"),
        ("", "the dataset is empty"),
        ("\n\n", "the dataset is empty"),
        (
            '{"promt": "a", "answer": 1}',
            r"no column 'prompt'; the columns are 'promt', 'answer' \(did you mean 'promt'",
        ),
        ('{"prompt": "a"}\n{"prompt": 3}', r"row 2: a prompt is text or a list of .*received 3"),
        ('{"prompt": "a"}\n{"answer": "x"}', r"row 2: a prompt is text or a list of .*received None"),
        ('{"prompt": []}', r"row 1: a prompt is text or a list"),
        ('{"prompt": [{"role": "user"}]}', r"row 1: a prompt is text or a list"),
        ('{"prompt": ""}', r"row 1: the prompt is empty"),
        ('{"prompt": "a"}', "one distinct prompt cannot be split"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
        (
            f'{{"prompt": "a"}}\n{{"prompt": {"9" * 5000}}}',
            r"line 2: Exceeds the limit .*; write such a number as text",
        ),
        ("[" * 100_000, r"line 1: more lists or objects inside of each other than can be read"),
    ],
    "a.json": [
        ('[{"prompt": "a"},\n}', r"line 2: not valid JSON"),
        ('{"prompt": "a"}', "holds a list of objects"),
        (f'[{{"prompt": {"9" * 5000}}}]', r"a\.json: Exceeds the limit .*; write such a number as text"),
    ],
    "a.csv": [
        ("prompt,answer\na,1\nb\n", r"line 3: not the 2 cells"),
        ("prompt,answer\na,1,2\n", r"line 2: not the 2 cells"),
        ('prompt,answer\n"a,1\n', "not valid CSV"),
        ("prompt,answer\n", "the dataset is empty"),
        ("prompt,answer,prompt\na,1,b\n", r"line 1: two columns are called 'prompt'"),
    ],
    "a.parquet": [("not parquet", "not valid Parquet")],
    "a.txt": [("hello", r"cannot read \.txt; known: \.jsonl")],
}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [(n, t, m) for n, cases in BROKEN.items() for t, m in cases],
    ids=lambda value: str(value)[:40],
)
def test_broken_files_are_one_clear_error(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RelgradError, match=message):
        load_file(path)


HALF = "half \ud83d"
"""What is left of an emoji that was cut in the middle of its surrogate pair."""


def text_of_bytes(pyarrow, *texts: bytes):
    """A column of text as a careless writer leaves it: nobody looked whether it is UTF-8."""
    offsets = [0, *itertools.accumulate(map(len, texts))]
    buffers = pyarrow.py_buffer(struct.pack(f"<{len(offsets)}i", *offsets)), pyarrow.py_buffer(b"".join(texts))
    return pyarrow.StringArray.from_buffers(len(texts), *buffers)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"prompt": HALF}, "'prompt'"),
        ({"prompt": "b", "note": HALF}, "'note'"),
        ({"prompt": "b", "note": {"deep": ["x", HALF]}}, "'note'"),
        ({"prompt": "b", "note": {HALF: 1}}, "'note'"),
        ({"prompt": [{"role": "user", "content": HALF}]}, "'prompt'"),
        ({"prompt": "b", HALF: 1}, r"'half \\ud83d'"),
    ],
)
def test_half_a_character_is_named_by_file_and_row(tmp_path, name, row, column):
    rows = [{"prompt": "a 😀"}, row]
    path = tmp_path / name
    path.write_text(json.dumps(rows) if name == "a.json" else "\n".join(map(json.dumps, rows)))
    which = 1 if HALF in row else 2  # a column's name is in every row
    with pytest.raises(
        RelgradError, match=rf"a\.jsonl?, row {which}: column {column} has half a character, '\\ud83d', after 5"
    ):
        load_file(path)


@pytest.mark.parametrize(("name", "second"), [("a.csv", b"b,\xed\xa0\xbd"), ("a.jsonl", b'{"prompt": "\xed\xa0\xbd"}')])
def test_bytes_that_are_no_text_are_named_by_file_and_line(tmp_path, name, second):
    first = b"prompt,note\na,1" if name == "a.csv" else b'{"prompt": "a"}\n'
    (tmp_path / name).write_bytes(first + b"\n" + second + b"\n")
    with pytest.raises(RelgradError, match=rf"{name}, line 3: not UTF-8 text"):
        load_file(tmp_path / name)


def test_bytes_that_are_no_text_in_parquet_and_data_sets_are_named_by_row(tmp_path, monkeypatch):
    pyarrow, datasets = pytest.importorskip("pyarrow"), pytest.importorskip("datasets")
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    notes = text_of_bytes(pyarrow, b"whole", b"half \xed\xa0\xbd")
    table = pyarrow.table({"prompt": pyarrow.array(["a", "b"]), "note": notes})
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(RelgradError, match=r"a\.parquet, row 2: not UTF-8 text"):
        load_file(tmp_path / "a.parquet")
    datasets.Dataset(table).save_to_disk(tmp_path / "saved")
    with pytest.raises(RelgradError, match=r"saved', split 'train', row 2: not UTF-8 text"):
        load_dataset(tmp_path / "saved")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"prompt": "a"}\n{"prompt": "half \\ud83d"}\n')
    with pytest.raises(RelgradError, match=r"folder': cannot read it .*surrogate pair in string is invalid\. in row 1"):
        load_dataset(folder)
    datasets.Dataset.from_list([{"prompt": "a"}, {"prompt": "b"}]).save_to_disk(tmp_path / "whole")
    assert len(load_dataset(tmp_path / "whole", held_out_fraction=0).train) == 2


@pytest.mark.parametrize("key", ["template", "system"])
def test_half_a_character_in_the_settings(tmp_path, key):
    with pytest.raises(ValueError, match=rf"{key}\n.*half a character, '\\ud83d', after 5 others"):
        file.Settings(path=tmp_path / "a.jsonl", **{key: HALF})


def test_missing_file_and_bad_templates(tmp_path):
    with pytest.raises(RelgradError, match=r"no file .*nowhere\.jsonl"):
        load_file(tmp_path / "nowhere.jsonl")
    path = write_jsonl(tmp_path / "a.jsonl", [{"question": "q"}])
    with pytest.raises(RelgradError, match=r"no column 'questions'.*did you mean 'question'"):
        load_file(path, template="{questions}")
    with pytest.raises(RelgradError, match=r"write \{\{ and \}\} for literal braces"):
        load_file(path, template="{question} \\boxed{}")


def test_settings_name_the_nearest_key(tmp_path):
    component = Component.model_validate({"kind": "file", "path": "x.jsonl", "promt_column": "q"})
    with pytest.raises(RelgradError, match="Did you mean 'prompt_column'"):
        settings_of(component, file.Settings, "task")
    component = Component.model_validate({"kind": "file", "path": "a", "held_out_path": "b", "held_out_fraction": 0.2})
    with pytest.raises(RelgradError, match="exclude each other"):
        settings_of(component, file.Settings, "task")


@pytest.mark.skipif(not GSM8K.is_file(), reason=f"no GSM8K file at {GSM8K}")
def test_gsm8k():
    task = load_file(
        GSM8K, template="Question: {question}\nAnswer:", held_out_path=GSM8K.with_name("gsm8k_test_300.jsonl")
    )
    assert (len(task.train), len(task.validation)) == (2000, 300)
    assert task.train[0].text.startswith("Question: Natalia sold clips to 48 of her friends")
    assert task.train[0].columns["answer"].endswith("#### 72")
    assert not set(texts(task.train)) & set(texts(task.validation))


# ---------------------------------------------------------------- Hugging Face datasets


def load_dataset(path: Path, seed: int = 0, **settings) -> Task:
    return dataset.load(dataset.Settings(path=str(path), **settings), seed)


def test_saved_datasets_with_and_without_splits(tmp_path):
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_list(questions(10))
    whole.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=whole, test=whole.select([0, 1])).save_to_disk(tmp_path / "two")
    one = load_dataset(tmp_path / "one", held_out_fraction=0.3)
    assert (len(one.train), len(one.validation)) == (7, 3)
    two = load_dataset(tmp_path / "two", held_out_split="test", limit=5)
    assert texts(two.train) == ["2 + 2 =", "3 + 3 =", "4 + 4 ="]
    assert texts(two.validation) == ["0 + 0 =", "1 + 1 ="]
    assert two.train[0].columns == {"answer": "4"}


def test_a_folder_of_data_files_is_a_dataset(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", questions(6))
    task = load_dataset(folder, held_out_fraction=0)
    assert texts(task.train) == [q["prompt"] for q in questions(6)]


def test_dataset_errors(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.DatasetDict(train=datasets.Dataset.from_list(questions(3))).save_to_disk(tmp_path / "d")
    datasets.Dataset.from_dict({"prompt": []}).save_to_disk(tmp_path / "empty")
    with pytest.raises(RelgradError, match=r"no split 'trian'; the splits are train \(did you mean 'train'"):
        load_dataset(tmp_path / "d", split="trian")
    with pytest.raises(RelgradError, match=r"no column 'promt'.*did you mean 'prompt'"):
        load_dataset(tmp_path / "d", prompt_column="promt")
    with pytest.raises(RelgradError, match="the dataset is empty"):
        load_dataset(tmp_path / "empty")
    datasets.Dataset.from_list(questions(3)).select([]).save_to_disk(tmp_path / "none_left")
    with pytest.raises(RelgradError, match="the dataset is empty"):
        load_dataset(tmp_path / "none_left")
    with pytest.raises(RelgradError, match="cannot read it"):
        load_dataset(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is the training split"):
        dataset.Settings(path="x", split="test", held_out_split="test")


# ---------------------------------------------------------------- digits


@pytest.mark.parametrize(
    ("operation", "expected"),
    [("reverse", lambda s: s[::-1]), ("copy", lambda s: s), ("sort", lambda s: "".join(sorted(s)))],
)
def test_digits_answers(operation, expected):
    task = digits.load(digits.Settings(operation=operation, train_size=50, held_out_size=20), seed=3)
    for prompt in [*task.train, *task.validation]:
        string, equals = prompt.content[:-1], prompt.content[-1]
        assert equals == "="
        assert len(string) == 5
        assert prompt.columns == {"answer": expected(string), "completion": expected(string)}


def test_digits_are_distinct_and_disjoint_up_to_the_whole_space():
    task = digits.load(digits.Settings(length=2, train_size=60, held_out_size=40), seed=0)
    assert sorted(texts(task.train) + texts(task.validation)) == [f"{i:02d}=" for i in range(100)]
    assert sorted(p.id for p in [*task.train, *task.validation]) == list(range(100))
    with pytest.raises(ValueError, match="only 100 strings of 2 digits"):
        digits.Settings(length=2, train_size=61, held_out_size=40)


def test_digits_by_seed():
    settings = digits.Settings(train_size=30, held_out_size=10)
    assert digits.load(settings, 1) == digits.load(settings, 1)
    assert digits.load(settings, 1).train != digits.load(settings, 2).train
    larger = digits.Settings(train_size=300, held_out_size=10, operation="copy")
    assert texts(digits.load(settings, 1).validation) == texts(digits.load(larger, 1).validation)


def test_digits_noise_is_the_teachers_alone():
    clean = digits.load(digits.Settings(train_size=4000, held_out_size=50), seed=0)
    noisy = digits.load(digits.Settings(train_size=4000, held_out_size=50, noise=0.3), seed=0)
    assert texts(noisy.train) == texts(clean.train)
    assert noisy.validation == clean.validation
    pairs = [(p.columns["answer"], p.columns["completion"]) for p in noisy.train]
    assert all(len(a) == len(c) for a, c in pairs)
    wrong = sum(x != y for a, c in pairs for x, y in zip(a, c, strict=True)) / 20000
    assert wrong == pytest.approx(0.3 * 0.9, abs=5 * (0.27 * 0.73 / 20000) ** 0.5)


# ---------------------------------------------------------------- reasoning-gym


def load_gym(seed: int = 0, **settings) -> Task:
    pytest.importorskip("reasoning_gym")
    return reasoning_gym.load(reasoning_gym.Settings(**settings), seed)


def test_gym_prompts_are_disjoint_and_repeatable():
    params = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    wanted = {"task": "chain_sum", "params": params, "train_size": 100, "held_out_size": 40}
    task = load_gym(**wanted)
    train, held_out = texts(task.train), texts(task.validation)
    assert (len(train), len(held_out), len(set(held_out))) == (100, 40, 40)
    assert not set(train) & set(held_out)
    assert task == load_gym(**wanted)
    assert texts(load_gym(seed=1, **wanted).validation) != held_out
    prompt = task.train[0]
    assert set(prompt.columns) == {"question", "answer", "metadata", "task", "params"}
    assert prompt.columns["question"] == prompt.content
    assert eval(prompt.columns["metadata"]["expression"]) == int(prompt.columns["answer"])


def test_gym_template_and_system():
    task = load_gym(task="chain_sum", train_size=1, held_out_size=0, template="{question} ?", system="Add.")
    system, user = task.train[0].content
    assert system == {"role": "system", "content": "Add."}
    assert user["content"] == task.train[0].columns["question"] + " ?"


def test_gym_errors():
    with pytest.raises(RelgradError, match=r"no task 'countdwon'.*did you mean 'countdown'"):
        load_gym(task="countdwon")
    with pytest.raises(RelgradError, match=r"unknown params max_term; known: .*max_terms"):
        load_gym(task="chain_sum", params={"max_term": 3})
    with pytest.raises(RelgradError, match="refuses params"):
        load_gym(task="chain_sum", params={"min_terms": 5, "max_terms": 2})
    with pytest.raises(ValueError, match="seed cannot be set here"):
        reasoning_gym.Settings(task="chain_sum", params={"seed": 1})
    tiny = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1, "allow_negation": False}
    with pytest.raises(RelgradError, match="usable prompts in 8000 drawn"):
        load_gym(task="chain_sum", params=tiny, train_size=5, held_out_size=400)


# ---------------------------------------------------------------- all kinds


def test_every_kind_is_found_and_offers_settings_and_load():
    assert set(registry.kinds("tasks")) >= {"file", "dataset", "digits", "reasoning_gym"}
    for kind in registry.kinds("tasks"):
        module = registry.find("tasks", kind)
        assert module.Settings.model_config["extra"] == "forbid"
        assert callable(module.load)
