"""Replies: the built-in data set, lines that are dropped with a reason, cleaning, near duplicates, splitting, the task."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import scipy.stats
from typer.testing import CliRunner

from commands import lines, relgrad
from relgrad.commands.cli import app
from relgrad.core.errors import RelgradError
from relgrad.tasks import replies
from relgrad.text.replies import cleaning, made, near, rows, splitting
from relgrad.text.replies.rows import Cleaning, Row, read_lines

SHARES = splitting.shares_of(0.5, 0.05, 0.05)


@pytest.fixture(scope="module")
def built_in() -> list[Row]:
    return made.rows()


@pytest.fixture(scope="module")
def posts(built_in: list[Row]) -> list[str]:
    return list({row["tweet_id"]: row["tweet"] for row in built_in}.values())


# ---------------------------------------------------------------------- the built-in data set


def test_the_built_in_set_is_large_and_of_many_topics(built_in: list[Row], posts: list[str]) -> None:
    replies_of = Counter(row["tweet_id"] for row in built_in)
    assert len(posts) >= 2000
    assert len({row["topic"] for row in built_in}) >= 20
    assert min(replies_of.values()) >= 2
    assert len(built_in) / len(posts) > 3
    assert not [row for row in built_in if re.search(r"[\[\]{}|]", row["tweet"] + row["reply"])], "a choice left open"


def test_few_built_in_posts_are_nearly_the_same(posts: list[str]) -> None:
    """Counted without near.py: all pairs by a sparse matrix of trigrams. A post counts where an earlier one is near it."""
    pieces = [near.pieces_of(text) for text in posts]
    number = {piece: n for n, piece in enumerate(sorted(set().union(*pieces)))}
    row_N = [n for n, own in enumerate(pieces) for _ in own]
    column_N = [number[piece] for own in pieces for piece in own]
    has_PT = scipy.sparse.csr_matrix((np.ones(len(row_N)), (row_N, column_N)))
    common_PP = scipy.sparse.triu(has_PT @ has_PT.T, k=1).tocoo()
    size_P = np.array([len(own) for own in pieces])
    union_N = size_P[common_PP.row] + size_P[common_PP.col] - common_PP.data
    close_N = common_PP.data / union_N >= 0.5
    assert len(set(common_PP.col[close_N])) / len(posts) < 0.05
    wide_N = common_PP.data / union_N >= 0.3
    expected = set(zip(common_PP.row[wide_N].tolist(), common_PP.col[wide_N].tolist(), strict=True))
    assert expected
    assert set(near.near_pairs(posts, 0.3)) == expected


def test_likes_go_along_with_quality_followers_and_time(built_in: list[Row]) -> None:
    """Each by itself, the others held fixed: a regression of log(1 + likes) on all four, in standard deviations."""
    table_NK = np.array(
        [
            (
                row["quality"],
                np.log(row["reply_author_followers"]),
                np.log(row["reply_time_diff_seconds"]),
                np.log(row["tweet_likes"]),
            )
            for row in built_in
        ]
    )
    standard_NK = (table_NK - table_NK.mean(0)) / table_NK.std(0)
    log_likes_N = np.log1p([row["reply_likes"] for row in built_in])
    quality, followers, delay, reach = np.linalg.lstsq(standard_NK, log_likes_N - log_likes_N.mean(), rcond=None)[0]
    assert quality > 0.3
    assert followers > 0.15
    assert delay < -0.15
    assert reach > 0.15
    rank = scipy.stats.spearmanr(table_NK[:, 0], log_likes_N).statistic
    assert 0.3 < rank < 0.8, "likes are mostly, and not only, quality"


def test_the_built_in_set_is_a_function_of_its_seed() -> None:
    few = made.rows(60, seed=3)
    assert few == made.rows(80, seed=3)[: len(few)]
    assert few != made.rows(60, seed=4)


# ---------------------------------------------------------------------- lines that are read and dropped


def line(**changes: Any) -> str:
    row = {"tweet_id": "1", "tweet": "The train is late.", "reply": "Mine too.", "reply_likes": 3, "tweet_likes": 10}
    return json.dumps({k: v for k, v in {**row, **changes}.items() if v is not ...})


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ('{"tweet_id": "1", "tweet": ', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1, 2]", "not a JSON object"),
        (line(tweet=...), "no tweet"),
        (line(tweet_id=None), "no tweet_id"),
        (line(reply="  \n"), "empty reply"),
        (line(reply="@somebody "), "empty reply"),
        (line(reply=7), "reply is no text"),
        (line(reply="half \ud83d"), "half a character in a text"),
        (line(reply_likes=-1), "negative reply_likes"),
        (line(reply_likes="many"), "reply_likes is no number"),
        (line(reply_likes=True), "reply_likes is no number"),
        (line(reply_likes=2.5), "reply_likes is no whole number"),
        (line(reply_likes=0).replace(": 0", ": NaN"), "reply_likes is no number"),
        (line(reply_likes=0).replace(": 0", ": 1e999"), "reply_likes is no number"),
        (line(reply_likes=10**40), "reply_likes is no number"),
        (line(reply_likes=None), None),
        (line(tweet_id=12), None),
    ],
)
def test_a_line_is_taken_or_dropped_with_its_reason(broken: str, reason: str | None) -> None:
    good = line(tweet_id="9")
    reading = read_lines(["", broken, good], Cleaning(scrub=False))
    assert reading.lines == 2
    assert reading.reasons == ({} if reason is None else {reason: 1})
    assert [each.line for each in reading.dropped] == ([] if reason is None else [2])
    assert reading.rows[-1]["tweet_id"] == "9"
    assert len(reading.rows) + len(reading.dropped) == reading.lines


def test_duplicates_are_dropped_once_each() -> None:
    reading = read_lines(
        [
            line(reply_id="a"),
            line(reply_id="a", reply="Another text."),
            line(reply_id="b"),
            line(tweet="Another post with the same id.", reply="Hm."),
            line(reply="Another text.", colour="red"),
        ],
        Cleaning(scrub=False),
    )
    assert [(each.line, each.reason) for each in reading.dropped] == [
        (2, "duplicate reply_id"),
        (3, "duplicate reply"),
        (4, "tweet_id of another tweet"),
    ]
    assert dict(reading.unknown) == {"colour": 1}


def test_a_file_of_which_nothing_can_be_used_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RelgradError, match="no file"):
        rows.read(tmp_path / "nowhere.jsonl")
    (tmp_path / "bad.jsonl").write_text("{\n" + line(reply="") + "\n")
    with pytest.raises(RelgradError, match="1 x not valid JSON, 1 x empty reply"):
        rows.read(tmp_path / "bad.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(line().replace("train", "tr\xe4in").encode("latin-1"))
    (tmp_path / "latin.jsonl").write_bytes(b'{"tweet": "\xe4"}')
    with pytest.raises(RelgradError, match="not UTF-8"):
        rows.read(tmp_path / "latin.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(RelgradError, match="the file is empty"):
        rows.read(tmp_path / "empty.jsonl")


# ---------------------------------------------------------------------- cleaning


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1000 to 10000 users, then 1,000,000...", "1000 to 10000 users, then 1,000,000..."),
        ("soooooo   good!!!!!!\n\nreally", "soo good!!! really"),
        ("Tom &amp; Sam &lt;3", "Tom & Sam <3"),
        ("aaa bbb 0000", "aaa bbb 0000"),
    ],
)
def test_cleaning_keeps_what_people_wrote(text: str, expected: str) -> None:
    assert cleaning.clean(text) == expected
    assert cleaning.clean(expected) == expected


def test_filter_words_are_whole_words() -> None:
    words = Cleaning(filter_words=("ser", "wen", "gm"))
    kept = [line(reply=text) for text in ("The server went down.", "A user segmented it.", "French fries.")]
    assert read_lines(kept, words).reasons == {}
    assert read_lines([line(reply="GM ser, wen launch")], words).reasons == {"a filter word in the reply": 1}


def test_scrubbing_takes_out_what_points_at_people() -> None:
    text = "Ask @jo_doe or jo.doe@mail.example.org, see https://x.example/a?b=1 or t.co/xyz, id 1234567890123456789, 250,000 fans"
    assert cleaning.scrub(text) == "Ask @user or [email], see [link] or [link] id [id], 250,000 fans"
    written = line(tweet=text, reply=f"@jo_doe @al {text}", reply_id="r1", tweet_author="jo_doe", reply_author="al")
    (row,) = read_lines([written], Cleaning(key="secret")).rows
    whole = json.dumps(row)
    assert not re.search(r"jo_doe|jo\.doe|x\.example|t\.co|123456789|r1\b", whole)
    assert row["reply"].startswith("Ask @user")
    other_key = read_lines([written], Cleaning(key="other")).rows[0]
    again = read_lines([written], Cleaning(key="secret")).rows[0]
    assert again == row
    assert other_key["tweet_id"] != row["tweet_id"]
    (kept,) = read_lines([written], Cleaning(scrub=False)).rows
    assert kept["tweet_author"] == "jo_doe"
    assert "https://x.example/a?b=1" in kept["reply"]


# ---------------------------------------------------------------------- splitting


def test_a_split_keeps_posts_whole_and_quartiles_even(built_in: list[Row]) -> None:
    some = built_in[:2000]
    result = splitting.split(some, SHARES, seed=1)
    assert result.passed, [check for check in result.checks if not check.passed]
    assert sum(map(len, result.parts.values())) == len(some)
    ids = [{row["tweet_id"] for row in own} for own in result.parts.values()]
    assert sum(map(len, ids)) == len(set().union(*ids))
    everything = splitting.quartiles_of([splitting.engagement(row) for row in some])
    overall = np.bincount(everything, minlength=4) / len(everything)
    for part, strata in result.strata.items():
        assert np.abs(np.bincount(strata, minlength=4)[:4] / len(strata) - overall[:4]).max() < 0.02, part
    phase1 = [row["reply_likes"] for row in result.parts["phase1"]]
    assert phase1 != sorted(phase1), "the order is drawn"
    assert splitting.split(some, SHARES, seed=1) == result
    assert splitting.split(some, SHARES, seed=2).parts != result.parts


def test_posts_that_are_nearly_the_same_stay_together() -> None:
    start = "The train to the coast was late again this morning and nobody told us why"
    chain = [f"{start}.", f"{start} not.", f"{start} at all, and I am tired.", "Something else entirely happened here."]
    few = [
        {"tweet_id": f"{n}", "tweet": text, "reply": f"{m}", "reply_likes": m, "tweet_likes": 5}
        for n, text in enumerate(chain * 10)
        for m in range(3)
    ]
    result = splitting.split(few, splitting.shares_of(0.5, 0, 0), seed=0)
    homes = {text: {part for part, own in result.parts.items() if text in [r["tweet"] for r in own]} for text in chain}
    assert homes[chain[0]] == homes[chain[1]] == homes[chain[2]]
    assert all(len(parts) == 1 for parts in homes.values())
    assert not result.passed, "three quarters of the rows cannot be divided"
    assert [check.name for check in result.checks if not check.passed][:1] == ["size of phase1"]


def test_checks_fail_on_splits_that_are_wrong(built_in: list[Row]) -> None:
    some = sorted(built_in[:2000], key=splitting.engagement)
    strata = splitting.quartiles_of([splitting.engagement(row) for row in some])
    halves = splitting.Split(
        {"phase1": some[:1000], "phase2": some[1000:]}, {"phase1": strata[:1000], "phase2": strata[1000:]}
    )
    failed = {check.name for check in splitting.checks_of(halves, {"phase1": 0.5, "phase2": 0.5}) if not check.passed}
    assert failed == {"posts", "near duplicates", "engagement of phase1", "engagement of phase2"}


def test_equal_and_missing_engagement(built_in: list[Row]) -> None:
    assert splitting.quartiles_of([0, 0, 0, 0, 0, 0, 0, 5]) == [0] * 7 + [3]
    equal = [{**row, "reply_likes": 0} for row in built_in[:800]]
    result = splitting.split(equal, SHARES, seed=0)
    assert result.passed
    assert result.notes == ["engagement has equal values, so that only these quartiles have rows: Q1"]
    none = [{k: v for k, v in row.items() if k != "reply_likes"} for row in built_in[:800]]
    result = splitting.split(none, SHARES, seed=0)
    assert result.passed
    assert set(result.strata["phase1"]) == {splitting.UNKNOWN}
    assert splitting.statistics_of(result)["phase1"]["engagement"] is None


@pytest.mark.parametrize(("ratio", "validation", "test"), [(1.5, 0, 0), (0.5, 0.6, 0.4), (0.5, -0.1, 0)])
def test_impossible_shares_are_refused(ratio: float, validation: float, test: float) -> None:
    with pytest.raises(RelgradError, match="together less than 1"):
        splitting.shares_of(ratio, validation, test)


# ---------------------------------------------------------------------- the command and the task


@pytest.fixture(scope="module")
def folder(built_in: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `relgrad split` makes of 600 rows and three broken lines."""
    place = tmp_path_factory.mktemp("split")
    broken = ["{", line(reply=""), json.dumps(built_in[0])]
    (place / "all.jsonl").write_text("\n".join([*map(json.dumps, built_in[:600]), *broken]))
    output = relgrad(
        "split", place / "all.jsonl", "--out", place / "parts", "--seed", 5, "--validation", 0.1, "--test", 0.1
    )
    assert "dropped  1 x not valid JSON (line 601)" in output
    assert "FAILED" not in output
    return place / "parts"


def test_the_command_writes_the_parts_figures_and_what_was_dropped(folder: Path) -> None:
    parts = {part: lines(folder / file) for part, file in splitting.FILES.items()}
    assert sum(map(len, parts.values())) == 600
    record = json.loads((folder / "phase_split_statistics.json").read_text())
    assert record["phase1"]["count"] == len(parts["phase1"])
    assert record["phase2"]["engagement"].keys() == {"mean", "std", "median", "min", "max"}
    assert record["dropped"] == {"not valid JSON": 1, "empty reply": 1, "duplicate reply_id": 1}
    assert [each["line"] for each in lines(folder / "dropped.jsonl")] == [601, 602, 603]
    assert all(check["passed"] for check in record["checks"])
    assert (folder / "phase_split_distributions.png").read_bytes().startswith(b"\x89PNG")
    assert "post-" not in (folder / "train_phase1_sft.jsonl").read_text(), "ids are pseudonyms"


def test_a_failed_check_is_exit_code_1(tmp_path: Path) -> None:
    same = [line(tweet_id=str(n), reply=f"reply {n}", reply_likes=n) for n in range(40)]
    others = ["Trams are late.", "Bread rose twice.", "Snow fell on the roof.", "My cat sings."]
    same += [line(tweet_id=f"x{n}", tweet=text, reply=f"other {n}") for n, text in enumerate(others)]
    (tmp_path / "same.jsonl").write_text("\n".join(same))
    result = CliRunner().invoke(
        app, ["split", str(tmp_path / "same.jsonl"), "-o", str(tmp_path / "out"), "--no-figure"]
    )
    assert result.exit_code == 1
    assert "FAILED   size of phase" in result.output
    assert "advice   too few posts" in result.output
    assert (tmp_path / "out" / "phase_split_statistics.json").is_file()


def test_too_few_posts_for_the_parts_are_an_error_with_the_fix(tmp_path: Path) -> None:
    few = [line(tweet_id=str(n), reply=f"reply {n}", reply_likes=n) for n in range(6)]
    few.append(line(tweet_id="other", tweet="Bread rose twice in the cold kitchen.", reply="lovely"))
    (tmp_path / "few.jsonl").write_text("\n".join(few))
    arguments = ["split", str(tmp_path / "few.jsonl"), "-o", str(tmp_path / "out"), "--no-figure"]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "400"})
    assert result.exit_code == 2
    assert "7 posts (2 once nearly equal ones are put together) for 4 parts" in result.output
    assert "--validation 0, --test 0" in result.output
    assert not (tmp_path / "out").exists()


def test_the_task_has_both_phases_and_shares_no_post() -> None:
    tasks = {phase: replies.load(replies.Settings(size=300, phase=phase), seed=0) for phase in ("sft", "grpo")}
    posts = {
        name: {prompt.columns["tweet_id"] for prompt in part}
        for name, part in {
            "sft": tasks["sft"].train,
            "grpo": tasks["grpo"].train,
            "validation": tasks["sft"].validation,
            "test": tasks["sft"].test,
        }.items()
    }
    assert sum(map(len, posts.values())) == len(set().union(*posts.values()))
    assert tasks["sft"].validation == tasks["grpo"].validation
    assert len(tasks["sft"].train) > len(posts["sft"]), "a row for every reply"
    assert len(tasks["grpo"].train) == len(posts["grpo"])
    prompt = tasks["grpo"].train[0]
    assert prompt.content == [
        {
            "role": "user",
            "content": f"Generate an engaging Twitter reply to this tweet:\n\n{prompt.columns['tweet']}\n\nReply:",
        }
    ]
    assert prompt.columns["completion"] in prompt.columns["references"]
    assert len({p.id for part in (tasks["sft"].train, tasks["sft"].test) for p in part}) == len(
        tasks["sft"].train
    ) + len(tasks["sft"].test)


def test_the_task_reads_a_split_folder_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    task = replies.load(replies.Settings(path=folder), seed=0)
    first = lines(folder / "train_phase2_grpo.jsonl")
    assert {prompt.columns["tweet"] for prompt in task.train} == {row["tweet"] for row in first}
    best = max((row for row in first if row["tweet_id"] == first[0]["tweet_id"]), key=lambda row: row["reply_likes"])
    assert task.train[0].columns["completion"] == best["reply"]
    for file in splitting.FILES.values():
        (tmp_path / file).write_text((folder / file).read_text())
    with (tmp_path / "test.jsonl").open("a") as test:
        test.write(json.dumps(first[0]) + "\n")
    with pytest.raises(RelgradError, match=r"is in train_phase2_grpo\.jsonl and in test\.jsonl"):
        replies.load(replies.Settings(path=tmp_path), seed=0)
    (tmp_path / "test.jsonl").write_text("{\n" + line())
    with pytest.raises(RelgradError, match=r"test\.jsonl, line 1: not valid JSON"):
        replies.load(replies.Settings(path=tmp_path), seed=0)
    (tmp_path / "validation.jsonl").unlink()
    with pytest.raises(RelgradError, match="relgrad split FILE"):
        replies.load(replies.Settings(path=tmp_path), seed=0)
    with pytest.raises(ValueError, match="has its own posts"):
        replies.Settings(path=folder, size=100)
