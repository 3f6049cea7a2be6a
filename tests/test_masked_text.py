"""Masked text: vocabularies, the split of a corpus, windows, masks, and the task made of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from relgrad.core.errors import RelgradError
from relgrad.core.types import Prompt
from relgrad.tasks import masked_text
from relgrad.tasks.masked_text import Settings
from relgrad.text.corpus import Windows, builtin, cut, load_corpus, load_text, split
from relgrad.text.masking import IGNORE, Line, Random, Span, Sticky, Strategy, in_words, mask
from relgrad.text.vocabulary import BLANK, Vocabulary

LETTERS = Vocabulary.of_text("abcdefghijklmnopqrstuvwxyz \n")
ALL = (Random(), Sticky(), Span(), Line())


def text_of(lines: int, seed: int = 0) -> str:
    """Lines of random words, none of them twice."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list("abcdefghij"), rng.integers(2, 8))) for _ in range(400)]
    return "".join(" ".join(rng.choice(words, rng.integers(3, 9))) + "\n" for _ in range(lines))


def masked(stage: Strategy, ids: np.ndarray, times: int, vocabulary: Vocabulary = LETTERS) -> list[np.ndarray]:
    """The hidden positions of `times` draws."""
    return [mask(ids, [stage], vocabulary, np.random.default_rng(i))[1] != IGNORE for i in range(times)]


def runs(hidden: np.ndarray) -> int:
    """Stretches of hidden positions."""
    return int(np.diff(np.concatenate([[0], hidden.astype(int)])).clip(min=0).sum())


# ---------------------------------------------------------------------- masks


def test_a_mix_by_its_name():
    """The original's `complex`: nine masks to train on, fourteen to judge by; BERT's 80/10/10 but for spans."""
    settings = Settings.model_validate({"stages": "complex"})
    assert [s.type for s in settings.stages] == [
        "sticky",
        "sticky",
        "random",
        "span",
        "sticky",
        "sticky",
        "random",
        "sticky",
        "sticky",
    ]
    assert [s.target_masked_ratio for s in settings.stages if isinstance(s, Sticky)] == [0.4, 0.6, 0.6, 0.6, 0.55, 0.9]
    assert all(s.bert == (s.type != "span") and s.weight == 1 for s in settings.stages)
    assert len(settings.held_out_stages) == 14
    assert Settings.model_validate(settings.model_dump(mode="json")) == settings, "written out, it is the same recipe"
    both = Settings.model_validate({"stages": [{"type": "line"}], "held_out_stages": "complex"})
    assert ([s.type for s in both.stages], both.held_out_stages) == (["line"], settings.held_out_stages)
    mine = Settings.model_validate({"stages": "complex", "held_out_stages": [{"type": "span"}]})
    assert mine.held_out_stages == (Span(),)
    with pytest.raises(ValueError, match="held_out_stages='hard' is no mix of masks; there is complex"):
        Settings.model_validate({"held_out_stages": "hard"})


@pytest.mark.parametrize("stage", [*ALL, *(type(s)(bert=True) for s in ALL)], ids=lambda s: f"{s.type}-{s.bert}")
def test_a_mask_hides_something_and_labels_what_it_hides(stage: Strategy) -> None:
    for seed in range(300):
        rng = np.random.default_rng(seed)
        ids = rng.integers(LETTERS.base, size=rng.integers(1, 60))
        shown, labels, drawn = mask(ids, [stage], LETTERS, rng)
        assert drawn is stage
        assert (shown == LETTERS.mask_id).any(), "a policy needs a decision"
        asked = labels != IGNORE
        assert (labels[asked] == ids[asked]).all()
        assert (shown[~asked] == ids[~asked]).all()
        assert (asked | (shown != LETTERS.mask_id)).all(), "every mask is asked for"
        if not stage.bert:
            assert (shown[asked] == LETTERS.mask_id).all()
        assert set(shown.tolist()) <= {*range(LETTERS.base), LETTERS.mask_id}


def test_random_masks_have_a_uniform_ratio_and_independent_positions() -> None:
    ids = np.zeros(400, int)
    hidden = np.array(masked(Random(min_masked_ratio=0.2, max_masked_ratio=0.6), ids, 2000))
    ratio = hidden.mean(1)
    # uniform on [.2, .6]: mean .4, standard deviation .4 / sqrt(12) = .1155, plus the binomial's .024 in quadrature
    assert ratio.mean() == pytest.approx(0.4, abs=4 * 0.118 / np.sqrt(2000))
    assert ratio.std() == pytest.approx(np.hypot(0.4 / np.sqrt(12), 0.0237), rel=0.05)
    assert ratio.min() < 0.22
    assert ratio.max() > 0.58
    beside = hidden[:, 1:][hidden[:, :-1]].mean()  # E[p^2] / E[p] for independent positions
    assert beside == pytest.approx((0.4**2 + 0.4**2 / 12) / 0.4, abs=0.01)


def test_sticky_masks_have_the_exact_ratio_and_cluster() -> None:
    ids = np.zeros(200, int)
    stage = Sticky(target_masked_ratio=0.4, p1_probability=0.02, p2_probability=0.5)
    hidden = masked(stage, ids, 200)
    assert {int(h.sum()) for h in hidden} == {80}
    assert np.mean([runs(h) for h in hidden]) < 0.75 * 80 * (1 - 80 / 200), "80 of 200 at random make 48 stretches"
    even = masked(Sticky(target_masked_ratio=0.4, p1_probability=0.1, p2_probability=0.1), ids, 200)
    assert np.mean([runs(h) for h in even]) == pytest.approx(80 * (1 - 80 / 200) + 0.4, rel=0.05)


def test_span_masks_are_at_most_so_many_stretches() -> None:
    counts = [runs(h) for h in masked(Span(spans_count=5), np.zeros(400, int), 300)]
    assert max(counts) == 5
    assert np.mean(counts) > 4
    assert {runs(h) for h in masked(Span(spans_count=1), np.zeros(50, int), 100)} == {1}


def test_line_masks_hide_whole_lines_and_no_line_end() -> None:
    text = "first line\n\nsecond\nthird one\nand the fourth"
    ids = np.array(LETTERS.encode(text))
    lines = [(text.index(line), text.index(line) + len(line)) for line in text.split("\n") if line]
    seen = set()
    for hidden in masked(Line(min_ratio=0.1, max_ratio=0.6), ids, 200):
        chosen = [bool(hidden[first:last].all()) for first, last in lines]
        assert all(chosen[i] or not hidden[first:last].any() for i, (first, last) in enumerate(lines))
        assert hidden.sum() == sum(last - first for (first, last), c in zip(lines, chosen, strict=True) if c)
        seen.add(sum(chosen))
    assert seen == {1, 2}


def test_bert_masks_are_80_10_10() -> None:
    ids = np.random.default_rng(0).integers(LETTERS.base, size=4000)
    counts, total = np.zeros(3), 0
    for seed in range(50):
        stage = Random(min_masked_ratio=0.3, max_masked_ratio=0.3, bert=True)
        shown, labels, _ = mask(ids, [stage], LETTERS, np.random.default_rng(seed))
        at = labels != IGNORE
        counts += [(shown[at] == LETTERS.mask_id).sum(), 0, (shown[at] == ids[at]).sum()]
        counts[1] += ((shown[at] != LETTERS.mask_id) & (shown[at] != ids[at])).sum()
        total += at.sum()
    share, hit = counts / total, 0.1 / LETTERS.base  # a random id is the true one once in `base` times
    error = 4 * np.sqrt(0.25 / total)
    assert share == pytest.approx([0.8, 0.1 - hit, 0.1 + hit], abs=error)
    assert total == pytest.approx(50 * 4000 * 0.3, rel=0.02)


def test_stages_are_drawn_by_their_weights() -> None:
    stages = [Random(weight=3), Span(weight=1)]
    drawn = [mask(np.zeros(10, int), stages, LETTERS, np.random.default_rng(i))[2].type for i in range(2000)]
    assert drawn.count("random") / 2000 == pytest.approx(0.75, abs=4 * np.sqrt(0.1875 / 2000))


def test_illegal_masks_are_refused() -> None:
    with pytest.raises(ValueError, match="exceeds max_masked_ratio"):
        Random(min_masked_ratio=0.5, max_masked_ratio=0.2)
    with pytest.raises(ValueError, match="exceeds max_ratio"):
        Line(min_ratio=0.5, max_ratio=0.2)
    with pytest.raises(ValueError, match="sticky"):
        Settings.model_validate({"stages": [{"type": "stiky"}]})


# ---------------------------------------------------------------------- the corpus


def overlap(pieces: tuple[str, ...], others: tuple[str, ...], length: int) -> list[str]:
    """The stretches of `pieces`, `length` characters or longer, that are also somewhere in `others`."""
    there = {o[i : i + length] for o in others for i in range(len(o) - length + 1)}
    found = []
    for piece in pieces:
        i = 0
        while i <= len(piece) - length:
            if piece[i : i + length] not in there:
                i += 1
                continue
            j = i
            while j <= len(piece) - length and piece[j : j + length] in there:
                j += 1
            found.append(piece[i : j + length - 1])
            i = j + length - 1
    return found


def test_the_builtin_text_is_split_without_a_common_paragraph_or_window() -> None:
    """Measured on Python 3.11: of 38,389 held-out characters three phrases (91, 72, 67 long) are also in the training text,
    and nothing of 60 characters or more beside them but the ruling of tables."""
    train, held_out = split(builtin(), 0.1)
    text = "".join(held_out)
    assert len(text) / len(builtin()) == pytest.approx(0.1, abs=0.02)

    def paragraphs(pieces: tuple[str, ...]) -> set[str]:
        return {" ".join(p.split()) for piece in pieces for p in piece.split("\n\n")} - {""}

    assert not paragraphs(train) & paragraphs(held_out)
    assert overlap(held_out, train, 128) == [], "no window of the default length"
    phrases = [o for o in overlap(held_out, train, 60) if sum(map(str.isalnum, o)) > 10]
    assert sum(map(len, phrases)) < 0.01 * len(text), phrases


@pytest.mark.parametrize("end", ["\n\n", "\n", " "])
def test_a_split_keeps_every_character_once_and_ends_blocks_where_the_text_does(end: str) -> None:
    text = end.join(f"piece {i} of the text, number {i * i}." for i in range(2000))
    blocks = cut(text)
    assert "".join(blocks) == text
    assert all(b.endswith(end) for b in blocks[:-1])
    train, held_out = split(text, 0.2)
    assert "".join(sorted((*train, *held_out), key=text.index)) == text
    assert all(h in text and h not in "\x00".join(train) for h in held_out)
    assert (split(text, 0.2), split(text, 0.0)[1]) == ((train, held_out), ())


def test_windows_stay_inside_their_piece() -> None:
    pieces = ("aaaa" * 10, "bbbb" * 10)
    windows = Windows(pieces, LETTERS, 8, "window")
    drawn = [windows.draw(np.random.default_rng(i)) for i in range(400)]
    assert all(len(ids) == 8 and len(set(ids.tolist())) == 1 for ids in drawn)
    assert 100 < sum(ids[0] == drawn[0][0] for ids in drawn) < 300, "both pieces are drawn"


def test_line_windows_are_whole_lines_from_a_line_start() -> None:
    text = text_of(60).replace("\n", "\n\n", 5)
    windows = Windows((text,), LETTERS, 80, "line")
    starts = set()
    for seed in range(500):
        found = LETTERS.decode(windows.draw(np.random.default_rng(seed)).tolist())
        at = text.index(found)
        assert at == 0 or text[at - 1] == "\n"
        assert found[0] != "\n"
        assert found.endswith("\n") or at + len(found) == len(text)
        assert len(found) <= 80
        rest = text[at + len(found) :].split("\n")[0] + "\n"
        assert len(found) + len(rest) > 80 or at + len(found) == len(text), "one more line would have fitted"
        starts.add(at)
    assert len(starts) > 50


def test_a_line_longer_than_the_window_is_cut() -> None:
    windows = Windows(("abc def ghi jkl\nm\n",), LETTERS, 6, "line")
    assert {LETTERS.decode(windows.draw(np.random.default_rng(i)).tolist()) for i in range(50)} == {"abc de", "m\n"}


@pytest.mark.parametrize("aligned", ["line", "window"])
def test_a_corpus_shorter_than_a_window(aligned: str, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("  \n" if aligned == "line" else "a few words")
    if aligned == "line":
        with pytest.raises(RelgradError, match="no text in it"):
            load_text(str(tmp_path / "short.txt"))
    else:
        settings = Settings(text=str(tmp_path / "short.txt"), length=64, aligned="window", held_out_size=0)
        with pytest.raises(RelgradError, match=r"shorter than one window.*length=64.*Lower task.length"):
            masked_text.load(settings, 0)


def test_a_text_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RelgradError, match="no such file"):
        load_corpus(str(tmp_path / "nowhere.txt"))
    (tmp_path / "latin.txt").write_bytes("Käse".encode("latin-1"))
    with pytest.raises(RelgradError, match="not UTF-8"):
        load_corpus(str(tmp_path / "latin.txt"))
    (tmp_path / "blank.txt").write_text(f"a {BLANK} in the text")
    with pytest.raises(RelgradError, match="shows masked positions"):
        load_corpus(str(tmp_path / "blank.txt"))
    with pytest.raises(RelgradError, match=r"tokenizer\.json"):
        load_corpus("builtin", symbols="words")


# ---------------------------------------------------------------------- vocabularies


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small byte-pair tokenizer with a special token of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<end>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([text_of(300)], trainer)
    folder = tmp_path_factory.mktemp("bpe")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def vocabularies(bpe: Path) -> list[Vocabulary]:
    text = text_of(50) + "Grüße, 東京 🙂"
    return [Vocabulary.of("char", text), Vocabulary.of("byte", text), Vocabulary.of(str(bpe), text)]


def test_text_comes_back_from_its_ids(bpe: Path) -> None:
    text = text_of(3) + " Grüße, 東京 🙂\n"
    for vocabulary in vocabularies(bpe):
        ids = vocabulary.encode(text)
        assert vocabulary.decode(ids) == text
        assert max(ids) < vocabulary.base
        with_blanks = f"{BLANK}ab{BLANK}{BLANK} cd{BLANK}"
        ids = vocabulary.encode(with_blanks)
        assert ids.count(vocabulary.mask_id) == 4
        assert vocabulary.decode([*ids, vocabulary.pad_id, vocabulary.cls_id]) == with_blanks
        assert {vocabulary.mask_id, vocabulary.pad_id, vocabulary.cls_id} <= set(vocabulary.excluded)
        assert vocabulary.size == vocabulary.base + 3


def test_a_tokenizer_s_own_special_tokens_are_never_written(bpe: Path) -> None:
    vocabulary = Vocabulary.of(str(bpe / "tokenizer.json"), "")
    assert vocabulary.excluded[0] == vocabulary._library.token_to_id("<end>")
    assert len(vocabulary.excluded) == 4


def test_a_vocabulary_comes_back_from_disk(bpe: Path, tmp_path: Path) -> None:
    prints = set()
    for vocabulary in vocabularies(bpe):
        vocabulary.save(tmp_path)
        again = Vocabulary.load(tmp_path)
        assert again == vocabulary
        assert again.fingerprint == vocabulary.fingerprint
        prints.add(again.fingerprint)
    assert len(prints) == 3
    with pytest.raises(RelgradError, match="another vocabulary"):
        LETTERS.require(Vocabulary("byte").fingerprint, "the judge")
    with pytest.raises(RelgradError, match=r"no vocabulary\.json"):
        Vocabulary.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b'{"kind": "char"}',
        b'{"kind": "char", "symbols": ["a", "b',
        b'{"kind": "word", "symbols": [], "tokenizer": ""}',
        b'{"kind": "char", "symbols": "ab", "tokenizer": ""}',
        b'{"kind": "char", "symbols": ["ab"], "tokenizer": ""}',
    ],
)
def test_a_broken_vocabulary_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "vocabulary.json").write_bytes(content)
    with pytest.raises(RelgradError, match=r"vocabulary\.json: not a vocabulary"):
        Vocabulary.load(tmp_path)


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_half_a_character_has_no_ids(kind: str) -> None:
    with pytest.raises(RelgradError, match=r"a text has half a character, '\\ud83d', after 2 others"):
        Vocabulary.of(kind, "ab").encode("ab\ud83d")


def test_characters_outside_the_vocabulary_are_named() -> None:
    with pytest.raises(RelgradError, match=r"2 characters.*'é' \(U\+00E9\) '☃' \(U\+2603\).*the first at 4"):
        LETTERS.encode("the é and ☃")


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"a": 1}')
    with pytest.raises(RelgradError, match=r"not a tokenizer\.json"):
        Vocabulary.of(str(tmp_path), "")


# ---------------------------------------------------------------------- the task


@pytest.fixture
def my_text(tmp_path: Path) -> str:
    (tmp_path / "my.txt").write_text(text_of(400), encoding="utf-8")
    return str(tmp_path / "my.txt")


def columns(prompt: Prompt) -> dict[str, Any]:
    return dict(prompt.columns)


@pytest.mark.parametrize("symbols", ["char", "byte", "bpe"])
def test_the_columns_of_a_sample_agree(symbols: str, my_text: str, bpe: Path) -> None:
    symbols = str(bpe) if symbols == "bpe" else symbols
    settings = Settings(text=my_text, symbols=symbols, length=48, stages=ALL, train_size=60, held_out_size=20)
    task = masked_text.load(settings, 0)
    vocabulary = Vocabulary.of(symbols, load_text(my_text))
    whole = load_text(my_text)
    for prompt in [*(task.train[i] for i in range(60)), *task.validation]:
        row = columns(prompt)
        assert row["truth"] in whole
        assert vocabulary.decode(row["truth_ids"]) == row["truth"]
        assert vocabulary.decode(row["masked_ids"]) == prompt.content
        assert vocabulary.encode(str(prompt.content)).count(vocabulary.mask_id) == row["masked_ids"].count(
            row["mask_id"]
        )
        assert len(row["truth_ids"]) == len(row["masked_ids"]) == len(row["label_ids"]) <= 48
        assert row["mask_ratio"] == row["masked_ids"].count(vocabulary.mask_id) / len(row["masked_ids"])
        assert row["vocabulary"] == vocabulary.fingerprint
    assert {columns(task.train[i])["strategy"] for i in range(60)} == {"random", "sticky", "span", "line"}
    assert [p.id for p in task.validation] == list(range(20))


def test_held_out_samples_are_never_in_the_training_text_and_the_same_for_every_seed(my_text: str) -> None:
    settings = Settings(text=my_text, length=64, train_size=10, held_out_size=50)
    first, second = masked_text.load(settings, 0), masked_text.load(settings, 1)
    assert first.validation == second.validation
    assert first.train[0] != second.train[0]
    train, held_out = split(load_text(my_text), 0.1)
    for prompt in first.validation:
        assert any(columns(prompt)["truth"] in piece for piece in held_out)
        assert not any(columns(prompt)["truth"] in piece for piece in train)
    for i in range(10):
        assert any(columns(first.train[i])["truth"] in piece for piece in train)


def test_held_out_samples_may_have_masks_of_their_own(my_text: str) -> None:
    settings = Settings(text=my_text, length=64, stages=(Random(),), held_out_stages=(Span(),), held_out_size=10)
    task = masked_text.load(settings, 0)
    assert columns(task.train[0])["strategy"] == "random"
    assert {columns(p)["strategy"] for p in task.validation} == {"span"}


FRESH = """
import json, sys
from relgrad.tasks import masked_text
task = masked_text.load(masked_text.Settings.model_validate(json.loads(sys.argv[1])), 5)
rows = [task.train[i] for i in (0, 7, 99_999)] + list(task.validation)
print(json.dumps([[r.content, r.id, dict(r.columns)] for r in rows]))
"""


def test_samples_are_the_same_in_every_process(my_text: str) -> None:
    settings = Settings(text=my_text, length=64, stages=ALL, held_out_size=5)

    def fresh(hashing: str) -> str:
        variables = {**os.environ, "PYTHONHASHSEED": hashing}
        command = [sys.executable, "-c", FRESH, settings.model_dump_json()]
        return subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout

    one, other = fresh("1"), fresh("2")
    assert one == other
    task = masked_text.load(settings, 5)
    here = [task.train[i] for i in (0, 7, 99_999)] + list(task.validation)
    assert json.loads(one) == [[r.content, r.id, columns(r)] for r in here]


def test_asking_beyond_the_last_sample(my_text: str) -> None:
    task = masked_text.load(Settings(text=my_text, length=64, train_size=3, held_out_size=0), 0)
    assert len(task.train) == 3
    assert task.train[-1] == task.train[2]
    with pytest.raises(IndexError):
        task.train[3]


def test_masks_in_words() -> None:
    one = Random(min_masked_ratio=0.1, max_masked_ratio=0.4)
    assert in_words([one]) == "random (min_masked_ratio 0.1, max_masked_ratio 0.4)"
    mixed = [one.model_copy(update={"weight": 3.0}), Span(spans_count=2, bert=True)]
    assert in_words(mixed).endswith("0.4); 25% span (spans_count 2, a tenth swapped)")
