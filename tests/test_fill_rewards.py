"""Rewards for filled-in text: the hidden truth, word validity, a language model, a classifier; and the n-gram model."""

from __future__ import annotations

import math
import pickle
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from relgrad.core.errors import RelgradError
from relgrad.core.settings import RewardComponent
from relgrad.core.types import Output, Prompt, Score
from relgrad.evaluation.held_out import evaluate
from relgrad.networks.causal import tiny
from relgrad.policies import fill_in
from relgrad.rewards import classifier, hidden, language_model, words
from relgrad.runs.build import build_rewards
from relgrad.tasks import masked_text
from relgrad.tasks._masked_prompt import masked_prompt
from relgrad.text.corpus import builtin, load_corpus
from relgrad.text.masking import IGNORE
from relgrad.text.ngram import NGram
from relgrad.text.vocabulary import BLANK, Vocabulary

LETTERS = Vocabulary.of_text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ '’.,-\nß")


def prompt_of(masked: str, truth: str, vocabulary: Vocabulary = LETTERS, **columns: Any) -> Prompt:
    """The prompt of a text whose masked positions are written as █; `columns` replace its own."""
    ids, hidden_ids = np.array(vocabulary.encode(truth)), np.array(vocabulary.encode(masked))
    labels = np.where(hidden_ids == vocabulary.mask_id, ids, IGNORE)
    prompt = masked_prompt(ids, hidden_ids, labels, vocabulary, 3, "random", len(ids))
    return Prompt(prompt.content, {**prompt.columns, **columns}, prompt.id)


def without(prompt: Prompt, name: str) -> Prompt:
    return Prompt(prompt.content, {k: v for k, v in prompt.columns.items() if k != name}, prompt.id)


def outputs_of(*texts: str, vocabulary: Vocabulary = LETTERS) -> list[Output]:
    return [Output(text, tuple(vocabulary.encode(text))) for text in texts]


def score(module: ModuleType, prompt: Prompt, outputs: list[Output], **settings: Any) -> list[Score]:
    return module.build(module.Settings(**settings))(prompt, outputs)


def values(scores: list[Score]) -> list[float]:
    return [s.value for s in scores]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


# ---------------------------------------------------------------- the hidden truth


def test_hidden_is_the_share_of_masked_positions_that_are_right():
    prompt = prompt_of("a██d█", "abcde")
    scores = score(hidden, prompt, outputs_of("abcde", "abxde", "axxdx"))
    assert values(scores) == [1, pytest.approx(2 / 3), 0]
    assert [s.per_decision for s in scores] == [(1, 1, 1), (1, 0, 1), (0, 0, 0)]
    assert [s.parts["all_right"] for s in scores] == [1, 0, 0]


def test_hidden_counts_masks_and_not_what_a_bert_mask_swapped():
    """Position 1 is swapped for a wrong id and position 4 left as it is: both have labels, neither is a decision."""
    truth, masked = np.array(LETTERS.encode("abcde")), np.array(LETTERS.encode("axc█e"))
    labels = np.array([IGNORE, truth[1], IGNORE, truth[3], truth[4]])
    prompt = masked_prompt(truth, masked, labels, LETTERS, 0, "random", len(truth))
    (right, wrong) = score(hidden, prompt, outputs_of("axcde", "axcxe"))
    assert (right.value, right.per_decision) == (1, (1,))
    assert (wrong.value, wrong.per_decision) == (0, (0,))


def test_hidden_without_a_truth_or_a_mask_is_unscored():
    (found,) = score(hidden, prompt_of("a█", "ab", truth_ids=None), outputs_of("ab"))
    assert math.isnan(found.value)
    assert "'truth_ids' is None" in found.why
    (found,) = score(hidden, prompt_of("ab", "ab"), outputs_of("ab"))
    assert math.isnan(found.value)
    assert found.why == "no position is masked"


@pytest.mark.parametrize("name", ["masked_ids", "mask_id", "truth_ids"])
def test_hidden_names_a_missing_column(name: str):
    with pytest.raises(RelgradError, match=f"'hidden'.*no column '{name}'"):
        score(hidden, without(prompt_of("a█", "ab"), name), outputs_of("ab"))


def test_hidden_refuses_completions_of_another_kind_of_policy():
    with pytest.raises(RelgradError, match=r"has 3 ids, its masked text 2.*fill_in"):
        score(hidden, prompt_of("a█", "ab"), outputs_of("abc"))
    with pytest.raises(RelgradError, match="has no masked_ids or no mask_id"):
        score(hidden, prompt_of("a█", "ab", masked_ids=None), outputs_of("ab"))
    with pytest.raises(RelgradError, match=r"prompt 3 has 1 true ids .* for 2 masked_ids"):
        score(hidden, prompt_of("a█", "ab", truth_ids=[0]), outputs_of("ab"))


# ---------------------------------------------------------------- words


@pytest.fixture
def lexicon(tmp_path: Path) -> str:
    path = tmp_path / "words.txt"
    path.write_text("the\nCat\n\nsat\ndon't\nwell-made\n")
    return str(path)


def test_words_is_the_share_of_refilled_words_in_the_lexicon(lexicon: str):
    prompt = prompt_of("The c██ s█t on", "The cat sat on")
    scores = score(words, prompt, outputs_of("The cat sat on", "The cat sxt on", "The cxx sxt on"), lexicon=lexicon)
    assert values(scores) == [1, 0.5, 0]  # "on" is in no lexicon, but nobody refilled it
    assert [s.per_decision for s in scores] == [(1, 1, 1), (1, 1, 0), (0, 0, 0)]
    assert [s.parts["words"] for s in scores] == [2, 2, 2]


def test_words_what_is_refilled_makes_the_words(lexicon: str):
    """The same positions make one word, two words, or an end of a word, whatever the truth was."""
    prompt = prompt_of("the█cat, s██", "the cat, sat")
    (space, joined) = score(words, prompt, outputs_of("the cat, sat", "thexcat, s.t"), lexicon=lexicon)
    assert (space.value, space.per_decision) == (1, (1, 1, 1))  # the blank is in no word: the mean of the words
    assert space.parts["words"] == 1
    assert (joined.value, joined.per_decision) == (0, (0, 0, 0))
    (mixed,) = score(words, prompt, outputs_of("thexcat. sat"), lexicon=lexicon)
    assert (mixed.value, mixed.per_decision) == (0.5, (0, 1, 1))


def test_words_a_position_outside_of_words_gets_the_mean(lexicon: str):
    prompt = prompt_of("c█t█sa█", "cat sat")
    (found,) = score(words, prompt, outputs_of("cat,sax"), lexicon=lexicon)
    assert (found.value, found.per_decision) == (0.5, (1, 0.5, 0))


@pytest.mark.parametrize(
    ("masked", "completed", "value"),
    [
        ("d█n't", "don't", 1),
        ("don█t", "don’t", 1),
        ("don█t", "donxt", 0),
        ("D█N'T", "DON'T", 1),
        ("'c█t'", "'cat'", 1),
        ("well-m█de", "well-made", 1),
    ],
)
def test_words_apostrophes_and_case(lexicon: str, masked: str, completed: str, value: float):
    (found,) = score(words, prompt_of(masked, completed), outputs_of(completed), lexicon=lexicon)
    assert found.value == value


def test_words_touching_no_word_is_unscored(lexicon: str):
    (found,) = score(words, prompt_of("the█cat", "the cat"), outputs_of("the.cat"), lexicon=lexicon)
    assert math.isnan(found.value)
    assert found.why == "the refilled positions touch no word"
    assert found.per_decision == ()


def test_words_skip_edges_leaves_out_what_a_window_may_have_cut(lexicon: str):
    prompt = prompt_of("█e cat s█", "he cat sa")
    (strict,) = score(words, prompt, outputs_of("he cat sa"), lexicon=lexicon)
    assert strict.value == 0
    (lenient,) = score(words, prompt, outputs_of("he cat sa"), lexicon=lexicon, skip_edges=True)
    assert math.isnan(lenient.value)
    (inner,) = score(
        words, prompt_of("█e c█t sa", "he cat sa"), outputs_of("he cat sa"), lexicon=lexicon, skip_edges=True
    )
    assert (inner.value, inner.per_decision, inner.parts["words"]) == (1, (1, 1), 1)


def test_words_of_a_corpus_and_min_count(tmp_path: Path):
    path = tmp_path / "corpus.txt"
    path.write_text("The cat, the Cat's hat; a hat.")
    build = words.Settings
    assert words.read_lexicon(build(text=str(path))) == {"the", "cat", "cat's", "hat", "a"}
    assert words.read_lexicon(build(text=str(path), min_count=2)) == {"the", "hat"}
    common = words.read_lexicon(build(min_count=5))
    assert {"the", "function", "class"} <= common
    assert common < words.read_lexicon(build())


def test_words_bad_lexicons(tmp_path: Path, lexicon: str):
    empty = tmp_path / "empty.txt"
    empty.write_text("12\n--\n")
    with pytest.raises(RelgradError, match=r"lexicon is empty: lexicon='.*empty.txt' has no word"):
        words.build(words.Settings(lexicon=str(empty)))
    with pytest.raises(RelgradError, match=r"lexicon is empty: text='.*empty.txt' has no word that occurs min_count=1"):
        words.build(words.Settings(text=str(empty)))
    with pytest.raises(RelgradError, match=r"lexicon='nowhere.txt': no such file"):
        words.build(words.Settings(lexicon="nowhere.txt"))
    with pytest.raises(RelgradError, match=r"text='nowhere.txt': no such file"):
        words.build(words.Settings(text="nowhere.txt"))
    latin = tmp_path / "latin.txt"
    latin.write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(RelgradError, match="not UTF-8"):
        words.build(words.Settings(lexicon=str(latin)))
    with pytest.raises(RelgradError, match="min_count=2 counts the words of a text"):
        build_rewards([RewardComponent(kind="words", lexicon=lexicon, min_count=2)], 5)


@pytest.mark.parametrize("name", ["masked_ids", "mask_id"])
def test_words_names_a_missing_column(name: str, lexicon: str):
    with pytest.raises(RelgradError, match=f"'words'.*no column '{name}'"):
        score(words, without(prompt_of("a█", "ab"), name), outputs_of("ab"), lexicon=lexicon)


def test_words_with_bytes_and_letters_of_two_bytes(tmp_path: Path):
    path = tmp_path / "w"
    path.write_text("süß\nda\n")
    vocabulary = Vocabulary("byte")
    text = "süß da"  # s, two bytes, two bytes, space, d, a
    ids = vocabulary.encode(text)
    masked = [*ids]
    for position in (2, 3, 6):
        masked[position] = vocabulary.mask_id
    prompt = prompt_of(text, text, vocabulary, masked_ids=masked)
    good = Output(text, tuple(ids))
    bad_ids = [*ids[:3], 0xC3, 0xA4, *ids[5:]]  # süä
    bad = Output(vocabulary.decode(bad_ids), tuple(bad_ids))
    broken_ids = [*ids[:2], ord("x"), *ids[3:]]  # half a character and an x
    broken = Output(vocabulary.decode(broken_ids), tuple(broken_ids))
    scores = score(words, prompt, [good, bad, broken], lexicon=str(path), symbols="byte")
    assert [s.per_decision for s in scores] == [(1, 1, 1), (0, 0, 1), (0, 0, 1)]
    with pytest.raises(RelgradError, match=r"symbols='char', but a completion has 8 ids and 6 characters"):
        score(words, prompt, [good], lexicon=str(path))


@pytest.fixture(scope="module")
def bpe(folder: Path) -> str:
    """A byte-level BPE whose entries span letters, words and blanks."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([builtin()[:20_000]], trainer)
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return str(path)


def test_words_spans_of_a_tokenizer_are_its_own_offsets(bpe: str):
    vocabulary = Vocabulary.of(bpe, "")
    text = "The statement's value — naïve 💡 süß, is bound.\n"
    encoding = Tokenizer.from_file(bpe).encode(text)
    assert len(encoding.ids) < len(text) + 10
    output = Output(text, tuple(encoding.ids))
    assert words._spans(output, range(len(encoding.ids)), vocabulary) == encoding.offsets


def test_words_with_a_tokenizer(bpe: str, tmp_path: Path):
    path = tmp_path / "w"
    path.write_text("the\nvalue\n")
    vocabulary = Vocabulary.of(bpe, "")
    ids = vocabulary.encode("the value")
    prompt = prompt_of("the value", "the value", vocabulary, masked_ids=[vocabulary.mask_id, *ids[1:]])
    other = Output(vocabulary.decode([ids[-1], *ids[1:]]), (ids[-1], *ids[1:]))
    (good, bad) = score(words, prompt, [Output("the value", tuple(ids)), other], lexicon=str(path), symbols=bpe)
    assert (good.value, bad.value) == (1, 0)
    assert len(good.per_decision) == len(bad.per_decision) == 1
    with pytest.raises(RelgradError, match="prompt 3 was made with another vocabulary"):
        score(words, prompt_of("a█", "ab"), outputs_of("ab"), lexicon=str(path), symbols=bpe)


# ---------------------------------------------------------------- the n-gram model


def test_ngram_known_answers():
    """On "abab" with pairs: p(a) = (2 + 2/3) / 6 = 4/9, p(foreign) = 1/9, p(b | a) = (2 + p(b)) / 3."""
    model = NGram("abab", 2)
    assert model.probability("a", "") == pytest.approx(4 / 9)
    assert model.probability("z", "") == pytest.approx(1 / 9)
    assert model.probability("b", "a") == pytest.approx((2 + 4 / 9) / 3)
    assert model.probability("a", "a") == pytest.approx((0 + 4 / 9) / 3)
    assert model.probability("b", "xyza") == model.probability("b", "a")
    assert model.probability("b", "z") == model.probability("b", "")
    assert model.log_probabilities("ab") == pytest.approx([math.log(4 / 9), math.log(22 / 27)])
    assert model.log_probabilities("") == []


@pytest.mark.parametrize("order", [1, 2, 3, 5, 7])
def test_ngram_sums_to_one_in_every_context(order: int):
    text = builtin()[:5000]
    model = NGram(text, order)
    rng = np.random.default_rng(0)
    seen = [text[i : i + 8] for i in rng.integers(0, 4900, 20)]
    strange = ["", "ÄÖÜ", "tÄ", "Äthe", "".join(rng.permutation(list(text))[:8]), text[-8:], text]
    for context in [*seen, *strange]:
        total = sum(model.probability(c, context) for c in model.alphabet) + model.probability("Ä", context)
        assert total == pytest.approx(1, abs=1e-12)
        assert all(model.probability(c, context) > 0 for c in [*model.alphabet, "Ä"])


def test_ngram_generalises_better_with_context():
    text = builtin()
    fitted, unseen = text[:200_000], text[200_000:210_000]
    nats = {order: -np.mean(NGram(fitted, order).log_probabilities(unseen)) for order in (1, 2, 5)}
    assert nats[5] < nats[2] - 0.3 < nats[1] - 0.6
    count = Counter(fitted)
    assert nats[1] == pytest.approx(
        -np.mean([math.log((count[c] + len(count) / (len(count) + 1)) / (len(fitted) + len(count))) for c in unseen])
    )


def test_ngram_bad_arguments():
    for text, order in (("", 3), ("abc", 0)):
        with pytest.raises(RelgradError, match="order >= 1 and a text"):
            NGram(text, order)


# ---------------------------------------------------------------- language model


def test_language_model_ngram_prefers_prose(tmp_path: Path):
    good, bad = "the value of the expression", "thx vqlue zf the exprejsion"
    reward = language_model.build(language_model.Settings())
    prompt = prompt_of("a█", "ab")
    (first, second, again, short) = reward(prompt, [Output(good), Output(bad), Output(good), Output("a")])
    assert first.value == pytest.approx(
        np.mean(NGram("\n".join(load_corpus("builtin").train), 5).log_probabilities(good))
    )
    assert 0 > first.value > second.value + 1
    assert first == again
    assert math.isnan(short.value)
    assert short.why == "a text of 1 tokens; a language model scores 2 or more"
    corpus = tmp_path / "lines.txt"
    corpus.write_text("abab\n" * 40)
    (own,) = score(language_model, prompt, [Output("ab")], text=str(corpus), order=2, per="character")
    learned = NGram("\n".join(load_corpus(str(corpus)).train), 2)
    assert own.value == pytest.approx(np.mean(learned.log_probabilities("ab")))


def test_ngram_by_hand() -> None:
    assert NGram("abab", 2).log_probabilities("ab") == pytest.approx([math.log(4 / 9), math.log(22 / 27)])


def save(model: Any, tokenizer: Any, path: Path) -> str:
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def characters(template: str = "$A") -> PreTrainedTokenizerFast:
    """The tiny models' tokenizer, one token per character; "<eos> $A" puts that sign before every text."""
    tokenizer = tiny.build_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<eos>", tokenizer.eos_token_id)]
    )
    return tokenizer


SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
ENTRIES = len(tiny.CHARACTERS) + 1
TEXTS = ["the cat sat on the mat.", "the", "a much longer text, of many words and marks!", "ab", "the cat"]


@pytest.fixture(scope="module")
def gpt2(folder: Path) -> str:
    """Absolute positions and dropout: both would show a mistake in padding or mode."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=ENTRIES, n_positions=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=None,
                        eos_token_id=0, resid_pdrop=0.5, initializer_range=0.3)  # fmt: skip
    return save(GPT2LMHeadModel(config), characters(), folder / "gpt2")


def own_loss(path: str, text: str, **arguments: Any) -> float:
    """The library's own mean cross-entropy of a text."""
    ids = AutoTokenizer.from_pretrained(path)(text, return_tensors="pt", **arguments).input_ids
    with torch.no_grad():
        return GPT2LMHeadModel.from_pretrained(path).eval()(ids, labels=ids).loss.item()


def test_language_model_is_the_librarys_own_loss_alone_and_in_a_batch(gpt2: str):
    outputs, prompt = [Output(t) for t in TEXTS], prompt_of("a█", "ab")
    batch = score(language_model, prompt, outputs, model=gpt2)
    assert values(batch) == pytest.approx([-own_loss(gpt2, t) for t in TEXTS], rel=1e-5)
    assert len(set(values(batch))) == len(TEXTS)
    for size in (1, 2):
        assert values(score(language_model, prompt, outputs, model=gpt2, batch_size=size)) == pytest.approx(
            values(batch), rel=1e-5
        )
    reward = language_model.build(language_model.Settings(model=gpt2))
    before = torch.get_rng_state()
    assert [reward(prompt, [o])[0].value for o in outputs] == pytest.approx(values(batch), rel=1e-5)
    assert torch.equal(torch.get_rng_state(), before)


def test_language_model_per_character(gpt2: str):
    (found,) = score(language_model, prompt_of("a█", "ab"), [Output("the cat")], model=gpt2, per="character")
    assert found.value == pytest.approx(-own_loss(gpt2, "the cat") * 6 / 7, rel=1e-5)


def test_equal_texts_are_scored_once(gpt2: str, bert: str, monkeypatch: pytest.MonkeyPatch):
    """Beside other rows a text can differ by rounding, and a group of equal texts must be exactly flat."""
    for module, scorer, path in (
        (language_model, language_model.Causal, gpt2),
        (classifier, classifier.Classifier, bert),
    ):
        seen: list[str] = []
        plain = scorer.__call__

        def watched(self: Any, texts: list[str], seen: list[str] = seen, plain: Any = plain) -> Any:
            seen.extend(texts)
            return plain(self, texts)

        monkeypatch.setattr(scorer, "__call__", watched)
        scores = score(module, prompt_of("a█", "ab"), [Output(t) for t in TEXTS * 4], model=path)
        assert seen == TEXTS
        assert values(scores) == values(scores[:5]) * 4


def test_language_model_a_start_sign_is_context_and_lets_the_first_token_be_scored(gpt2: str, folder: Path):
    started = save(GPT2LMHeadModel.from_pretrained(gpt2), characters("<eos> $A"), folder / "started")
    (found, plain) = (
        score(language_model, prompt_of("a█", "ab"), [Output("the cat")], model=path)[0] for path in (started, gpt2)
    )
    assert found.value == pytest.approx(-own_loss(started, "the cat"), rel=1e-5)
    assert found.value != pytest.approx(plain.value, rel=1e-3)
    (short,) = score(language_model, prompt_of("a█", "ab"), [Output("a")], model=started)
    assert short.why == "a text of 1 tokens; a language model scores 2 or more"


def test_language_model_an_end_sign_is_not_scored(gpt2: str, folder: Path):
    ended = save(GPT2LMHeadModel.from_pretrained(gpt2), characters("$A <eos>"), folder / "ended")
    (found,) = score(language_model, prompt_of("a█", "ab"), [Output("the cat")], model=ended)
    assert found.value == pytest.approx(-own_loss(gpt2, "the cat"), rel=1e-5)


def test_language_model_too_long_and_too_short_texts_are_unscored_beside_scored_ones(gpt2: str):
    prompt = prompt_of("a█", "ab")
    texts = ["", "x" * 65, "the cat", "a", "x" * 64]
    scores = score(language_model, prompt, [Output(t) for t in texts], model=gpt2)
    assert [s.why for s in scores] == [
        "a text of 0 tokens; a language model scores 2 or more",
        "a text of 65 tokens; the language model takes 64",
        "",
        "a text of 1 tokens; a language model scores 2 or more",
        "",
    ]
    assert scores[2].value == pytest.approx(-own_loss(gpt2, "the cat"), rel=1e-5)


def test_language_model_bad_settings(gpt2: str, folder: Path):
    with pytest.raises(RelgradError, match=r"no folder '\./nowhere'"):
        language_model.build(language_model.Settings(model="./nowhere"))
    small = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_positions=8, n_embd=8, n_layer=1, n_head=1, eos_token_id=0))
    other = save(small, characters(), folder / "small")
    with pytest.raises(RelgradError, match=r"gives id \d+, but model .*small' has 9 ids"):
        score(language_model, prompt_of("a█", "ab"), [Output("the")], model=other)
    with pytest.raises(RelgradError, match=r"(?s)rewards.0.*per: Input should be .token. or .character."):
        build_rewards([RewardComponent(kind="language_model", per="word")], 5)


# ---------------------------------------------------------------- classifier


def judge(folder: Path, name: str, config: Any, tokenizer: Any = None) -> str:
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    return save(model, tokenizer or characters(), folder / name)


@pytest.fixture(scope="module")
def bert(folder: Path) -> str:
    config = BertConfig(vocab_size=ENTRIES, max_position_embeddings=64, **SIZE, hidden_dropout_prob=0.5,
                        id2label={0: "machine", 1: "human"}, label2id={"machine": 0, "human": 1})  # fmt: skip
    return judge(folder, "bert", config, characters("<eos> $A"))


def own_logits(path: str, text: str, **arguments: Any) -> torch.Tensor:
    """The library's own forward pass of one text."""
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    row = AutoTokenizer.from_pretrained(path)(text, return_tensors="pt", **arguments)
    row = {k: v for k, v in row.items() if k != "token_type_ids" or isinstance(model, BertForSequenceClassification)}
    with torch.no_grad():
        return model(**row).logits[0]


ASK = Prompt("the c█t", {})


def test_classifier_is_the_librarys_own_forward_alone_and_in_a_batch(bert: str):
    outputs = [Output(t) for t in TEXTS]
    scores = score(classifier, ASK, outputs, model=bert)
    assert values(scores) == pytest.approx([own_logits(bert, t).softmax(-1)[1].item() for t in TEXTS], abs=1e-5)
    assert max(values(scores)) - min(values(scores)) > 1e-3
    assert [s.parts for s in scores] == [{"truncated": 0.0}] * len(TEXTS)
    assert [s.per_decision for s in scores] == [()] * len(TEXTS)
    for size in (1, 2):
        again = score(classifier, ASK, outputs, model=bert, batch_size=size)
        assert values(again) == pytest.approx(values(scores), abs=1e-6)


@pytest.mark.parametrize(("label", "index"), [("machine", 0), ("human", 1), (0, 0), (1, 1), (None, 1)])
def test_classifier_labels_by_name_and_index(bert: str, label: str | int | None, index: int):
    (found,) = score(classifier, ASK, [Output("the cat")], model=bert, label=label, score="logit")
    assert found.value == pytest.approx(own_logits(bert, "the cat")[index].item(), abs=1e-5)


def test_classifier_unknown_label_names_the_labels(bert: str, folder: Path):
    for label in ("robot", 2, -1):
        with pytest.raises(RelgradError, match=rf"no label {label!r}; its labels are 'machine' \(0\), 'human' \(1\)"):
            classifier.build(classifier.Settings(model=bert, label=label))
    three = judge(folder, "three", BertConfig(vocab_size=ENTRIES, num_labels=3, max_position_embeddings=64, **SIZE))
    with pytest.raises(RelgradError, match=r"has 3 labels; set label to one of: 'LABEL_0' \(0\), .*'LABEL_2' \(2\)"):
        classifier.build(classifier.Settings(model=three))
    (found,) = score(classifier, ASK, [Output("the cat")], model=three, label="LABEL_2")
    assert found.value == pytest.approx(own_logits(three, "the cat").softmax(-1)[2].item(), abs=1e-5)


def test_classifier_one_output_and_labels_that_may_all_be_true(folder: Path):
    base = {"vocab_size": ENTRIES, "max_position_embeddings": 64, **SIZE}
    one = judge(folder, "one", BertConfig(num_labels=1, **base))
    (chance,) = score(classifier, ASK, [Output("the cat")], model=one)
    (logit,) = score(classifier, ASK, [Output("the cat")], model=one, score="logit")
    assert logit.value == pytest.approx(own_logits(one, "the cat")[0].item(), abs=1e-5)
    assert chance.value == pytest.approx(1 / (1 + math.exp(-logit.value)), abs=1e-6)
    many = judge(folder, "many", BertConfig(num_labels=2, problem_type="multi_label_classification", **base))
    (chance,) = score(classifier, ASK, [Output("the cat")], model=many, label=0)
    assert chance.value == pytest.approx(own_logits(many, "the cat").sigmoid()[0].item(), abs=1e-5)
    scale = judge(folder, "scale", BertConfig(num_labels=1, problem_type="regression", **base))
    with pytest.raises(RelgradError, match="is a regression, its output is no probability; set score: logit"):
        classifier.build(classifier.Settings(model=scale))
    (found,) = score(classifier, ASK, [Output("the cat")], model=scale, score="logit")
    assert found.value == pytest.approx(own_logits(scale, "the cat")[0].item(), abs=1e-5)


def test_classifier_template(bert: str):
    (found,) = score(
        classifier, ASK, [Output("{a} cat")], model=bert, template="{prompt} {{to}} {completion}", score="logit"
    )
    want = own_logits(bert, f"the c{BLANK}t {{to}} {{a}} cat")[1].item()
    assert found.value == pytest.approx(want, abs=1e-5)
    for template in ("text", "{prompt}", "{completion} {answer}", "{completion} {}"):
        with pytest.raises(RelgradError, match=r"(?s)rewards.0.*must name \{completion\}"):
            build_rewards([RewardComponent(kind="classifier", model=bert, template=template)], 5)


def test_classifier_counts_what_it_cuts(bert: str):
    texts = ["the cat", "x" * 100 + "y"]
    short, long = score(classifier, ASK, [Output(t) for t in texts], model=bert, score="logit")
    assert (short.parts, long.parts) == ({"truncated": 0.0}, {"truncated": 1.0})
    assert long.value == pytest.approx(own_logits(bert, texts[1], truncation=True, max_length=64)[1].item(), abs=1e-5)
    (cut,) = score(classifier, ASK, [Output("the cat")], model=bert, score="logit", max_length=4)
    assert cut.parts == {"truncated": 1.0}
    assert cut.value == pytest.approx(own_logits(bert, "the")[1].item(), abs=1e-5)
    with pytest.raises(RelgradError, match=r"max_length=65, but model .* takes 64 tokens"):
        classifier.build(classifier.Settings(model=bert, max_length=65))


@pytest.mark.parametrize("pad", [None, 0, 5])
def test_classifier_that_reads_its_last_token(folder: Path, pad: int | None):
    """A decoder finds its last token by the model's padding id; one that has none cannot be padded."""
    config = LlamaConfig(vocab_size=ENTRIES, num_labels=2, max_position_embeddings=64, num_key_value_heads=2,
                         pad_token_id=pad, **SIZE)  # fmt: skip
    path = judge(folder, f"llama-{pad}", config)
    assert isinstance(AutoModelForSequenceClassification.from_pretrained(path), LlamaForSequenceClassification)
    scores = score(classifier, ASK, [Output(t) for t in [*TEXTS, ""]], model=path, score="logit")
    assert values(scores)[:-1] == pytest.approx([own_logits(path, t)[1].item() for t in TEXTS], abs=1e-5)
    assert scores[-1].why == "a text without tokens"


def test_classifier_with_positions_after_the_padding_id(folder: Path):
    """RoBERTa with 64 positions and padding id 1 takes 62 tokens."""
    config = RobertaConfig(vocab_size=ENTRIES, max_position_embeddings=64, type_vocab_size=1, pad_token_id=1, **SIZE)
    path = judge(folder, "roberta", config)
    assert isinstance(AutoModelForSequenceClassification.from_pretrained(path), RobertaForSequenceClassification)
    scores = score(classifier, ASK, [Output("x" * n) for n in (62, 63, 3)], model=path)
    assert [s.parts["truncated"] for s in scores] == [0, 1, 0]
    assert scores[0].value == pytest.approx(scores[1].value, abs=1e-6)  # the same 62 tokens, in batches of two widths
    assert scores[2].value == pytest.approx(own_logits(path, "xxx").softmax(-1)[1].item(), abs=1e-5)


def test_classifier_refuses_models_that_are_none(folder: Path, bert: str):
    headless = save(BertModel(BertConfig(vocab_size=ENTRIES, **SIZE)), characters(), folder / "headless")
    with pytest.raises(RelgradError, match=r"is no trained sequence classifier: it has no classifier.bias"):
        classifier.build(classifier.Settings(model=headless))
    with pytest.raises(RelgradError, match=r"no folder '\./nowhere'"):
        classifier.build(classifier.Settings(model="./nowhere"))
    other = judge(folder, "few", BertConfig(vocab_size=9, num_labels=2, **SIZE))
    with pytest.raises(RelgradError, match=r"gives id \d+, but model .*few' has 9 ids"):
        score(classifier, ASK, [Output("the")], model=other)


def test_classifier_reads_no_pickle(folder: Path):
    path = Path(judge(folder, "pickled", BertConfig(vocab_size=ENTRIES, num_labels=2, **SIZE)))
    (path / "model.safetensors").unlink()
    trap = folder / "opened"

    class Trap:
        def __reduce__(self):
            return Path.touch, (trap,)

    (path / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Trap()}))
    with pytest.raises(RelgradError, match="weights must be safetensors"):
        classifier.build(classifier.Settings(model=str(path)))
    assert not trap.exists()


# ---------------------------------------------------------------- together, on a policy


def test_all_of_them_in_an_evaluation(bert: str, gpt2: str):
    task = masked_text.load(masked_text.Settings(length=48, train_size=4, held_out_size=6), 0)
    settings = fill_in.Settings(block_size=48, n_layer=1, n_head=2, n_embd=16)
    policy = fill_in.build(settings, 0)
    rewards = build_rewards(
        [
            RewardComponent(kind="hidden"),
            RewardComponent(kind="words", min_count=3, weight=0.5),
            RewardComponent(kind="language_model", name="ngram"),
            RewardComponent(kind="language_model", model=gpt2),
            RewardComponent(kind="classifier", model=bert),
        ],
        60,
    )
    try:
        found = evaluate(policy, task.validation, rewards, num_generations=3, seed=1)
        rollouts = policy.sample(task.validation, 3, torch.Generator().manual_seed(1))
        table = rewards(rollouts)
    finally:
        rewards.close()
    assert found.prompts == 6
    assert set(found.rewards) == {"hidden", "words", "ngram", "language_model", "classifier"}
    assert table.value_BR[:, 0].mean().item() == pytest.approx(found.rewards["hidden"])
    right = [
        np.mean([o.ids[p] == prompt.columns["truth_ids"][p] for p in range(len(o.ids)) if prompt.content[p] == BLANK])
        for o, prompt in zip(rollouts.outputs, (p for p in task.validation for _ in range(3)), strict=True)
    ]
    assert table.value_BR[:, 0].tolist() == pytest.approx(right)


@pytest.mark.parametrize("kind", [hidden, words])
def test_as_many_scores_as_decisions(kind: ModuleType):
    task = masked_text.load(masked_text.Settings(length=64, train_size=20, held_out_size=0), 0)
    policy = fill_in.build(fill_in.Settings(block_size=64, n_layer=1, n_head=2, n_embd=16), 0)
    rollouts = policy.sample([task.train[i] for i in range(20)], 2, torch.Generator().manual_seed(0))
    reward = kind.build(kind.Settings())
    scored = 0
    for row, output in enumerate(rollouts.outputs):
        (found,) = reward(rollouts.prompts[int(rollouts.group_B[row])], [output])
        if not math.isnan(found.value):
            scored += 1
            assert len(found.per_decision) == int(rollouts.mask_BT[row].sum())
            assert all(0 <= s <= 1 for s in found.per_decision)
    assert scored > 20
