"""Rewards: each kind against known answers, TRL-style functions as they are, and every way a reward can fail."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from relgrad.core import registry
from relgrad.core.errors import RelgradError
from relgrad.core.settings import RewardComponent
from relgrad.core.tables import require_scored
from relgrad.core.types import Output, Prompt, Rollouts, Score
from relgrad.environments.benchmarks.numbers import numbers
from relgrad.rewards import exact, number, overlong, regex
from relgrad.rewards.combine import NamedReward, RewardSet
from relgrad.runs.build import build_rewards, resolve
from relgrad.runs.recipe import Recipe, parse_recipe

ASK = Prompt("2 + 2 =", {"answer": "4", "level": 1})
CHAT = Prompt([{"role": "user", "content": "3 + 3 ="}], {"answer": "6", "level": 2})


def rollouts(*groups: tuple[Prompt, list[str]], order: list[int] | None = None) -> Rollouts:
    """Finished rows without decisions worth speaking of; token ids are the code points of the text."""
    rows = [(g, text) for g, (_, texts) in enumerate(groups) for text in texts]
    rows = [rows[i] for i in order] if order else rows
    shape = (len(rows), 1)
    return Rollouts(
        prompts=tuple(prompt for prompt, _ in groups),
        group_B=torch.tensor([g for g, _ in rows], dtype=torch.int64),
        behaviour_logp_BT=torch.zeros(shape),
        mask_BT=torch.ones(shape, dtype=torch.bool),
        size_BT=torch.ones(shape, dtype=torch.int64),
        outputs=tuple(Output(text, tuple(map(ord, text))) for _, text in rows),
        stop=("eos",) * len(rows),
        policy_version=7,
        trace={},
    )


def reward_with(*functions, timeout: float = 5.0, batch: Rollouts | None = None):
    rewards = RewardSet([NamedReward(f"r{i}", f) for i, f in enumerate(functions)], timeout)
    try:
        return rewards(batch or rollouts((ASK, ["4", "5"])))
    finally:
        rewards.close()


def values(table) -> list[list[float]]:
    return table.value_BR.tolist()


def scores(module, prompt: Prompt, outputs: list[Output | str], **settings) -> list[float]:
    reward = module.build(module.Settings(**settings))
    outputs = [Output(o) if isinstance(o, str) else o for o in outputs]
    return [score.value for score in reward(prompt, outputs)]


# ---------------------------------------------------------------- built-in kinds


def test_exact():
    prompt = Prompt("x", {"answer": "Paris", "n": 12, "none": None})
    assert scores(exact, prompt, ["Paris", " Paris\n", "paris", "Paris!"]) == [1, 1, 0, 0]
    assert scores(exact, prompt, [" Paris", "PARIS"], strip=False, casefold=True) == [0, 1]
    assert scores(exact, prompt, ["12", "1"], column="n") == [1, 0]
    assert all(map(math.isnan, scores(exact, prompt, ["a", "b"], column="none")))
    with pytest.raises(RelgradError, match=r"no column 'anwser' \(did you mean 'answer'\?\)"):
        scores(exact, prompt, ["a"], column="anwser")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("12345", 1), ("12354", 3 / 5), ("1234", 4 / 5), ("123456", 5 / 6), ("", 0), ("54321", 1 / 5)],
)
def test_exact_per_character(text, expected):
    assert scores(exact, Prompt("x", {"answer": "12345"}), [text], per_character=True) == [pytest.approx(expected)]


def test_exact_per_character_of_nothing():
    assert scores(exact, Prompt("x", {"answer": ""}), ["", "a"], per_character=True) == [1, 0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("#### 72", ["72"]),
        ("It costs $1,234.50.", ["1234.50"]),
        ("3-4", ["3", "4"]),
        ("x=-7, y = −8", ["-7", "-8"]),
        ("(2)-1", ["2", "1"]),
        (".5 and -.5", ["0.5", "-0.5"]),
        ("6.02e23", ["6.02e23"]),
        ("1/2", ["1", "2"]),
        ("a 1,2", ["1", "2"]),
        ("H2O or GPT-4", ["4"]),
        ("1e999999999", ["1"]),
        ("none", []),
    ],
)
def test_numbers_in_text(text, expected):
    assert [str(n) for n in numbers(text)] == [str(type(n)(e)) for n, e in zip(numbers(text), expected, strict=True)]


def test_an_expected_answer_may_be_written_as_a_chat():
    """As TRL's prompt-completion datasets have it."""
    row = Prompt("x", {"completion": [{"role": "assistant", "content": "It is 72"}]})
    assert scores(exact, row, ["It is 72", "72"], column="completion") == [1, 0]
    assert scores(number, row, ["72", "71"], column="completion") == [1, 0]


def test_number():
    gsm8k = Prompt("x", {"answer": "48/2 = 24 clips\n#### 72", "f": 0.1, "text": "none", "big": "12345678901234567890"})
    assert scores(number, gsm8k, ["24 and 48 make 72.", "72 no, 71", "nothing"]) == [1, 0, 0]
    assert scores(number, gsm8k, ["72 or 3", "3 or 72"], where="first") == [1, 0]
    assert scores(number, gsm8k, ["It is 72.00", "72 or 72"], where="only") == [1, 0]
    assert scores(number, gsm8k, ["0.1", "0.1000000001", "0.11"], column="f") == [1, 1, 0]
    assert scores(number, gsm8k, ["0.15"], column="f", tolerance=0.05) == [1]
    assert scores(number, gsm8k, ["12345678901234567890", "12345678901234567891"], column="big") == [1, 0]
    assert all(map(math.isnan, scores(number, gsm8k, ["1"], column="text")))
    assert scores(number, gsm8k, ["9" * 5000, "0" * 5000 + "72", "9" * 1_000_001, "1e999", "1e-999"]) == [0, 1, 0, 0, 0]


def test_regex():
    assert scores(regex, ASK, ["<a>4</a>", "so <a>4</a>"], pattern=r"<a>\d</a>") == [1, 0]
    assert scores(regex, ASK, ["so <A>4</A>", "4"], pattern=r"(?i)<a>\d</a>", match="partial") == [1, 0]
    with pytest.raises(ValueError, match="not a regular expression"):
        regex.Settings(pattern="(")


@pytest.mark.parametrize(
    ("tokens", "expected"), [(0, 0), (80, 0), (81, -0.05), (90, -0.5), (100, -1), (101, -1), (1000, -1)]
)
def test_overlong_is_eq_13_of_dapo(tokens, expected):
    output = Output("t" * tokens, tuple(range(tokens)))
    got = scores(overlong, ASK, [output], max_completion_length=100, soft_punish_cache=20)
    assert got == [pytest.approx(expected)]
    rewards = pytest.importorskip("trl.rewards")
    assert rewards.get_soft_overlong_punishment(100, 20)([list(output.ids)]) == got


def test_overlong_edges():
    settings = {"max_completion_length": 3, "soft_punish_cache": 0}
    assert scores(overlong, ASK, [Output("abc", (1, 2, 3)), Output("abcd", (1, 2, 3, 4)), Output("")], **settings) == [
        0,
        -1,
        0,
    ]
    assert math.isnan(scores(overlong, ASK, [Output("text without ids")], **settings)[0])
    with pytest.raises(ValueError, match="must not exceed"):
        overlong.Settings(max_completion_length=3, soft_punish_cache=4)


@pytest.mark.parametrize("task", ["chain_sum", "countdown", "polynomial_equations", "spell_backward"])
def test_reasoning_gym_verifier_accepts_its_own_answers(task):
    gym = pytest.importorskip("reasoning_gym")
    tasks, rewards = registry.find("tasks", "reasoning_gym"), registry.find("rewards", "reasoning_gym")
    prompts = tasks.load(tasks.Settings(task=task, train_size=5, held_out_size=0), seed=0).train
    plain, tagged = rewards.build(rewards.Settings()), rewards.build(rewards.Settings(tag="answer"))
    for prompt in prompts:
        answer = prompt.columns["answer"]
        if task == "countdown":
            answer = prompt.columns["metadata"]["expression"]
        judge = gym.create_dataset(task)
        right = judge.score_answer(answer, dict(prompt.columns))
        assert right == 1
        assert [s.value for s in plain(prompt, [Output(f" {answer}\n"), Output("")])] == [
            1,
            judge.score_answer("", dict(prompt.columns)),
        ]
        assert [s.value for s in tagged(prompt, [Output(f"so <answer>{answer}</answer>"), Output("no tag")])] == [
            1,
            judge.score_answer(None, dict(prompt.columns)),
        ]


def test_reasoning_gym_needs_its_own_prompts():
    pytest.importorskip("reasoning_gym")
    rewards = registry.find("rewards", "reasoning_gym")
    with pytest.raises(RelgradError, match="reward 'reasoning_gym': the dataset has no column 'task'"):
        rewards.build(rewards.Settings())(ASK, [Output("4")])


def test_math_verify():
    pytest.importorskip("math_verify", reason="math-verify is not installed (pip install 'relgrad[math]')")
    batch = rollouts(
        (Prompt("x", {"answer": r"$\frac{1}{2}$"}), [r"So $\boxed{0.5}$", r"$\boxed{\frac{2}{3}}$", "dunno"])
    )
    with_it = build_rewards([RewardComponent(kind="math_verify")], timeout=30)
    assert values(with_it(batch)) == [[1], [0], [0]]
    unparseable = rollouts((Prompt("x", {"answer": "~"}), ["1"]), (Prompt("x", {"answer": "2"}), ["2"]))
    table = with_it(unparseable)
    assert math.isnan(values(table)[0][0])
    assert "cannot parse column 'answer'" in table.why[0]


def test_missing_library_gives_the_install_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "math_verify", None)
    module = registry.find("rewards", "math_verify")
    with pytest.raises(RelgradError, match=r"pip install 'relgrad\[math\]'"):
        module.build(module.Settings())


# ---------------------------------------------------------------- calling


def test_trl_style_arguments_of_a_text_and_a_chat_prompt():
    seen = []

    def record(prompts, completions, completion_ids, answer, trainer_state, **columns):
        seen.append((prompts, completions, completion_ids, answer, columns["level"], trainer_state.global_step))
        return [1.0] * len(prompts)

    reward_with(record, batch=rollouts((ASK, ["4", "55"]), (CHAT, ["6", "7"])))
    assert seen == [
        (["2 + 2 ="] * 2, ["4", "55"], [[52], [53, 53]], ["4", "4"], [1, 1], 7),
        (
            [[{"role": "user", "content": "3 + 3 ="}]] * 2,
            [[{"role": "assistant", "content": "6"}], [{"role": "assistant", "content": "7"}]],
            [[54], [55]],
            ["6", "6"],
            [2, 2],
            7,
        ),
    ]


def test_only_named_arguments_are_passed():
    def lengths(completions, unknown=3):
        return [len(c) + unknown for c in completions]

    assert values(reward_with(lengths)) == [[4], [4]]


def test_own_form_groups_and_row_order():
    calls = []

    def own(prompt, outputs):
        calls.append((prompt, [o.text for o in outputs]))
        return [Score(float(o.text), {"double": 2 * float(o.text)}) for o in outputs]

    batch = rollouts((ASK, ["4", "5"]), (CHAT, ["6", "7", "8"]), order=[3, 0, 4, 1, 2])
    table = reward_with(own, batch=batch)
    assert calls == [(CHAT, ["7", "8", "6"]), (ASK, ["4", "5"])]
    assert values(table) == [[7], [4], [8], [5], [6]]
    assert [p["r0/double"] for p in table.parts] == [14, 8, 16, 10, 12]
    assert table.why == ("",) * 5


def test_log_extra_and_log_metric_become_parts():
    def chatty(completions, log_extra, log_metric):
        log_extra("length", [len(c) for c in completions])
        log_extra("text", completions)
        log_metric("mean", 0.5)
        return [0.0] * len(completions)

    table = reward_with(chatty, batch=rollouts((ASK, ["4", "55"])))
    assert table.parts == ({"r0/length": 1, "r0/mean": 0.5}, {"r0/length": 2, "r0/mean": 0.5})


class AsyncCallable:
    async def __call__(self, completions, **columns):
        await asyncio.sleep(0)
        return [float(c) for c in completions]


def test_kinds_of_callables():
    def scaled(completions, factor):
        return [factor * float(c) for c in completions]

    assert values(reward_with(functools.partial(scaled, factor=2.0), AsyncCallable())) == [[8, 4], [10, 5]]
    with pytest.raises(RelgradError, match="remove the /"):
        RewardSet([NamedReward("a", lambda completions, /: completions)], 1)


def test_async_rewards_of_all_groups_run_together_and_beside_sync_ones():
    running, most = set(), []

    async def slow(completions):
        running.add(completions[0])
        most.append(len(running))
        await asyncio.sleep(0.1)
        running.discard(completions[0])
        return [1.0] * len(completions)

    def sync(completions):
        time.sleep(0.02)
        most.append(len(running))
        return [0.0] * len(completions)

    groups = [(ASK, [str(i)] * 2) for i in range(4)]
    table = reward_with(slow, sync, batch=rollouts(*groups))
    assert values(table) == [[1, 0]] * 8
    assert max(most) == 4


def test_numbers_of_every_make():
    def many(completions):
        return [True, 2, np.float32(0.5), np.int64(3), np.bool_(True), torch.tensor(4.0), np.array(5)]

    batch = rollouts((ASK, ["x"] * 7))
    assert values(reward_with(many, batch=batch)) == [[1], [2], [0.5], [3], [1], [4], [5]]
    for whole in (np.arange(7.0), torch.arange(7.0), tuple(range(7))):
        table = reward_with(lambda completions, whole=whole: whole, batch=batch)
        assert values(table) == [[i] for i in range(7)]
    assert table.value_BR.dtype == table.weights_R.dtype == torch.float64


# ---------------------------------------------------------------- failures


def fine(completions):
    return [1.0] * len(completions)


def test_a_reward_that_raises_leaves_its_group_unscored():
    def picky(completions, answer):
        if answer[0] == "6":
            raise ValueError("bad six")
        return [2.0] * len(completions)

    table = reward_with(fine, picky, batch=rollouts((ASK, ["4", "5"]), (CHAT, ["6"])))
    assert values(table)[:2] == [[1, 2], [1, 2]]
    assert values(table)[2][0] == 1
    assert math.isnan(values(table)[2][1])
    assert table.why[:2] == ("", "")
    line = picky.__code__.co_firstlineno + 2
    assert table.why[2] == f"r1: ValueError: bad six (test_rewards.py:{line} in picky)"


@pytest.mark.parametrize("error", [SystemExit(1), asyncio.CancelledError(), StopIteration()])
def test_exotic_exceptions_are_failures_too(error):
    async def later(completions):
        raise error

    def now(completions):
        raise error

    table = reward_with(fine, now, later)
    assert all(math.isnan(row[1]) and math.isnan(row[2]) for row in values(table))
    assert "r1: " in table.why[0]
    assert "r2: " in table.why[0]
    assert values(reward_with(fine)) == [[1], [1]]


def test_a_function_that_hangs_is_interrupted(caplog):
    ended = []

    def hangs(completions, answer):
        try:
            if answer[0] == "4":
                threading.Event().wait(20)
        finally:
            ended.append(answer[0])
        return [2.0] * len(completions)

    rewards = RewardSet([NamedReward("ok", fine), NamedReward("hangs", hangs)], timeout=0.2)
    batch = rollouts((ASK, ["4", "5"]), (CHAT, ["6"]))
    for _ in range(2):
        table = rewards(batch)
        assert values(table)[2] == [1, 2]
        assert all(math.isnan(row[1]) for row in values(table)[:2])
        assert table.why == ("hangs: no answer within 0.2 s",) * 2 + ("",)
    assert ended == ["4", "6"] * 2, "every call ended before the next began"
    assert caplog.text.count("gave no answer") == 1


@pytest.mark.parametrize("swallowed", [Exception, BaseException])
def test_what_a_function_makes_of_its_interrupt_is_no_score(swallowed):
    def careless(completions):
        with contextlib.suppress(swallowed):
            time.sleep(20)
        return [0.0] * len(completions)

    table = reward_with(fine, careless, timeout=0.1)
    assert [math.isnan(row[1]) for row in values(table)] == [True, True]
    assert table.why == ("r1: no answer within 0.1 s",) * 2


def test_functions_that_need_the_main_thread_have_it():
    """As where TRL calls them: an alarm cannot be set on any other thread, and many rewards count an exception as 0."""
    signals = []

    def with_alarm(completions):
        try:
            before = signal.signal(signal.SIGALRM, lambda *_: None)
            signal.alarm(5)
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
        except Exception:
            return [0.0] * len(completions)
        signal.raise_signal(signal.SIGUSR2)
        return [1.0] * len(completions)

    before = signal.signal(signal.SIGUSR2, lambda number, frame: signals.append(number))
    try:
        assert values(reward_with(with_alarm)) == [[1], [1]]
        assert signals == [signal.SIGUSR2], "another's signal goes to its own handler"
        signal.raise_signal(signal.SIGUSR2)
        assert len(signals) == 2
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_function_leaves_the_gradient_mode_as_it_was():
    """A reward model often switches gradients off for good; on the main thread that would be the training's own switch."""
    modes = []

    def careless(completions):
        modes.append(torch.is_grad_enabled())
        torch.set_grad_enabled(False)
        return [0.0] * len(completions)

    reward_with(careless, batch=rollouts((ASK, ["4"]), (CHAT, ["6"])))
    assert torch.is_grad_enabled()
    with torch.no_grad():
        reward_with(careless)
        assert not torch.is_grad_enabled()
    assert modes == [True] * 3


def test_math_verify_gives_what_it_gives_where_trl_calls_it():
    """Its time-outs are alarms, which the main thread alone can set."""
    pytest.importorskip("math_verify", reason="math-verify is not installed (pip install 'relgrad[math]')")
    from math_verify import parse, verify

    def reward(completions, answer):
        try:
            return [1.0 if verify(parse(gold), parse("4")) else 0.0 for gold in answer]
        except Exception:
            return [0.0] * len(completions)

    assert values(reward_with(reward)) == [[1], [1]]


def test_beside_the_main_thread_a_call_that_hangs_is_left_behind_and_not_called_beside_itself():
    release, calls = threading.Event(), []

    def hangs(completions, answer):
        calls.append(answer[0])
        if answer[0] == "4":
            release.wait(20)
        return [2.0] * len(completions)

    rewards = RewardSet([NamedReward("ok", fine), NamedReward("hangs", hangs)], timeout=0.2)
    batch, tables = rollouts((ASK, ["4"]), (CHAT, ["6"])), []

    def twice():
        tables.extend(rewards(batch) for _ in range(2))

    thread = threading.Thread(target=twice)
    thread.start()
    thread.join()
    assert calls == ["4"]
    assert [row[0] for table in tables for row in values(table)] == [1] * 4, "other rewards are called"
    why = [line for table in tables for line in table.why]
    assert why[0] == "hangs: no answer within 0.2 s"
    assert all("hangs: not called: its call that gave no answer in time has not ended" in line for line in why[1:])
    release.set()
    rewards.close()


def test_async_rewards_that_hang():
    async def waits(completions, answer):
        if answer[0] == "4":
            await asyncio.sleep(20)
        return [2.0] * len(completions)

    batch = rollouts((ASK, ["4", "5"]), (CHAT, ["6"]))
    table = reward_with(fine, waits, timeout=0.3, batch=batch)
    assert [math.isnan(row[1]) for row in values(table)] == [True, True, False]


def test_an_async_reward_that_blocks_is_not_called_beside_itself():
    release, calls = threading.Event(), []

    async def blocks(completions):
        calls.append(len(completions))
        if len(calls) == 1:
            release.wait(20)
        return [2.0] * len(completions)

    async def other(completions):
        return [3.0] * len(completions)

    batch = rollouts((ASK, ["4", "5"]))
    rewards = RewardSet([NamedReward("fine", fine), NamedReward("blocks", blocks), NamedReward("other", other)], 0.3)
    assert all(math.isnan(row[1]) for row in values(rewards(batch)))
    table = rewards(batch)
    assert calls == [2]
    assert "blocks: not called" in table.why[0]
    assert [row[2] for row in values(table)] == [3, 3], "others have a new loop"
    release.set()
    while any(math.isnan(row[1]) for row in values(table)):
        table = rewards(batch)
    assert values(table) == [[1, 2, 3]] * 2
    rewards.close()


def test_an_async_reward_that_swallows_its_cancellation_is_not_called_beside_itself():
    running, most, release = [], [], threading.Event()

    async def stubborn(completions):
        running.append(1)
        most.append(len(running))
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)
        running.pop()
        return [0.0] * len(completions)

    rewards = RewardSet([NamedReward("fine", fine), NamedReward("stubborn", stubborn)], 0.1)
    batch = rollouts((ASK, ["4", "5"]))
    assert all(math.isnan(row[1]) for row in values(rewards(batch))), "a late 0 is no score"
    assert "not called" in rewards(batch).why[0]
    assert most == [1]
    release.set()
    rewards.close()


@pytest.mark.parametrize(
    ("value", "reason"), [(None, "returned None"), (math.nan, "returned nan"), (-math.inf, "returned -inf")]
)
def test_none_nan_and_infinity_are_unscored_one_by_one(value, reason):
    table = reward_with(lambda completions: [value, 0.0])
    assert math.isnan(values(table)[0][0])
    assert values(table)[1] == [0.0]
    assert table.why == (f"r0: {reason}", "")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([1.0], "reward 'r0' returned 1 values for 2 completions"),
        ([1.0] * 3, "returned 3 values for 2 completions"),
        (1.0, r"returned float 1\.0; expected a list of 2 numbers"),
        (None, "returned NoneType None; expected a list"),
        ("ab", "returned str 'ab'; expected a list"),
        ({"a": 1, "b": 2}, "returned dict"),
        (np.zeros((2, 1)), "returned ndarray"),
        (["1", "2"], "returned str '1' for a completion; return a number or None"),
        ([[1.0], [2.0]], "returned list"),
    ],
)
def test_wrong_shapes_are_errors(answer, message):
    async def later(completions):
        return answer

    for function in (lambda completions: answer, later):
        with pytest.raises(RelgradError, match=message):
            reward_with(function)


def test_a_sync_function_that_returns_a_coroutine():
    async def later(completions):
        return [1.0] * len(completions)

    with pytest.raises(RelgradError, match="declare the function itself with async def"):
        reward_with(lambda completions: later(completions))


def test_missing_column_is_an_error_that_names_it():
    def needs(completions, anwser):
        return [0.0] * len(completions)

    with pytest.raises(
        RelgradError, match=r"no column 'anwser' \(did you mean 'answer'\?\); its columns are 'answer', 'level'"
    ):
        reward_with(fine, needs)
    with pytest.raises(RelgradError, match="reward 'exact': the dataset has no column 'solution'"):
        reward_with(exact.build(exact.Settings(column="solution")))


def test_nothing_scored_at_all_stops_with_the_first_reason_and_traceback():
    def broken(completions):
        return 1 / 0

    table = reward_with(broken, lambda completions: [None] * len(completions))
    with pytest.raises(RelgradError) as caught:
        require_scored([table])
    message = str(caught.value)
    assert message.startswith(
        "none of 2 completions could be scored; the first: r0: ZeroDivisionError: division by zero (test_re"
    )
    assert "return 1 / 0" in message
    assert "_workers.py" not in message


def test_a_monitor_is_logged_and_keeps_no_batch_alive():
    def sure(completions):
        return [1.0 for _ in completions]

    def lost(completions):
        return [None for _ in completions]

    batch = rollouts((ASK, ["4", "5"]))
    watched = RewardSet([NamedReward("counts", sure), NamedReward("watches", lost, 0.0)], 5.0)(batch)
    assert watched.counted_R.tolist() == [True, False]
    assert watched.value_BR[:, 0].tolist() == [1, 1]
    assert watched.why == ("watches: returned None",) * 2
    unscored = RewardSet([NamedReward("counts", lost), NamedReward("watches", sure, 0.0)], 5.0)(batch)
    with pytest.raises(RelgradError, match="none of 2 completions could be scored; the first: counts: returned None"):
        require_scored([unscored])
    require_scored([unscored, watched])  # a failing part of a batch is bad luck; all of it is a mistake
    with pytest.raises(RelgradError, match=r"every reward has weight 0 \(a, b\); give one that counts a weight"):
        RewardSet([NamedReward("a", sure, 0.0), NamedReward("b", sure, 0.0)], 5.0)


def test_nothing_hangs_one_thread_and_less_than_a_millisecond_per_group():
    threads = set()

    def note(completions):
        threads.add(threading.get_ident())
        return [0.0] * len(completions)

    rewards = RewardSet([NamedReward("note", note)], 5.0)
    batch = rollouts(*[(ASK, ["4"] * 8) for _ in range(100)])
    best = math.inf
    for _ in range(5):
        start = time.process_time()  # of all threads; another process's load does not count
        rewards(batch)
        best = min(best, (time.process_time() - start) / 100)
    rewards.close()
    assert len(threads) == 1
    assert best < 1e-3


# ---------------------------------------------------------------- recipes


def test_build_rewards_names_and_weights():
    parts = [
        RewardComponent(kind="exact", weight=2),
        RewardComponent.model_validate({"kind": "exact", "name": "partial", "weight": 0.5, "per_character": True}),
    ]
    rewards = build_rewards(parts, 5.0)
    table = rewards(rollouts((ASK, ["4", "45"])))
    assert rewards.names == table.names == ("exact", "partial")
    assert table.weights_R.tolist() == [2, 0.5]
    assert values(table) == [[1, 1], [0, 0.5]]


@pytest.mark.parametrize(
    ("components", "message"),
    [
        ([{"kind": "exact"}, {"kind": "exact"}], "2 rewards are called 'exact'; give each its own `name`"),
        ([{"kind": "exakt"}], "Did you mean 'exact'"),
        ([{"kind": "exact", "per_charakter": True}], r"rewards.0 \(kind 'exact'\):\n.*Did you mean 'per_character'"),
        ([], "no rewards"),
        ([{"kind": "function", "function": "nowhere.py:f"}], "no file 'nowhere.py'"),
        ([{"kind": "function", "function": "no_such_module:f"}], "cannot import 'no_such_module'"),
        ([{"kind": "function", "function": "math:sqrtt"}], "math has no 'sqrtt'. Did you mean 'sqrt'"),
        ([{"kind": "function", "function": "math:pi"}], "is float, which cannot be called"),
        ([{"kind": "function", "function": "math"}], "write path/to/file.py:name"),
        ([{"kind": "json.decoder"}], "offers no `Settings`"),
        ([{"kind": "../x"}], r"rewards: unknown kind '../x'. Known: .*exact"),
    ],
)
def test_build_errors(components, message):
    with pytest.raises(RelgradError, match=message):
        build_rewards([RewardComponent.model_validate(c) for c in components], 5.0)


MINE = """
async def length(completions, **columns):
    return [float(len(c)) for c in completions]

def make(bonus):
    def fixed(completions):
        return [bonus] * len(completions)
    return fixed
"""

KIND = """
from relgrad.core.settings import Strict

class Settings(Strict):
    value: float

def build(settings):
    return lambda completions: [settings.value] * len(completions)
"""


def test_functions_and_kinds_of_ones_own(tmp_path: Path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "my_kind.py").write_text(KIND)
    (tmp_path / "broken_file.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    components = [
        {"kind": "function", "function": "mine.py:length", "name": "length"},
        {"kind": "function", "function": "mine:make", "arguments": {"bonus": 0.25}},
        {"kind": "my_kind.py", "value": 3},
    ]
    rewards = build_rewards([RewardComponent.model_validate(c) for c in components], 5.0)
    assert rewards.names == ("length", "make", "my_kind")
    assert values(rewards(rollouts((ASK, ["4", "abc"])))) == [[1, 0.25, 3], [3, 0.25, 3]]
    for function, message in [
        ("broken_file.py:f", "cannot import 'broken_file.py' .ZeroDivisionError"),
        ("mine.py:lenght", "Did you mean 'length'"),
    ]:
        with pytest.raises(RelgradError, match=message):
            build_rewards([RewardComponent.model_validate({"kind": "function", "function": function})], 5.0)


def test_functions_are_called_by_their_names(tmp_path: Path, monkeypatch):
    """As TRL calls them; a `name` in the recipe goes first."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    rewards = [
        {"kind": "function", "function": "mine.py:length"},
        {"kind": "function", "function": "mine.py:length", "name": "longer", "weight": 0},
        {"kind": "exact"},
    ]
    built = build_rewards([RewardComponent.model_validate(r) for r in rewards], 5.0)
    assert built.names == ("length", "longer", "exact")
    with pytest.raises(RelgradError, match="2 rewards are called 'length'; give each its own `name`"):
        build_rewards([RewardComponent.model_validate(rewards[0])] * 2, 5.0)
    policy, task = {"kind": "autoregressive", "model": "tiny"}, {"kind": "digits"}
    stage = resolve(parse_recipe({"name": "x", "policy": policy, "task": task, "rewards": rewards})).stages[0]
    assert [reward.name for reward in stage.rewards] == ["length", "longer", None], "the report reads the recipe"
    assert resolve(Recipe(name="x", stages=(stage,))).stages[0] == stage


def test_a_file_is_executed_once_however_it_is_named(tmp_path: Path, monkeypatch):
    (tmp_path / "some").mkdir()
    (tmp_path / "other").mkdir()
    body = "from pathlib import Path\nPath(__file__).with_suffix('.log').open('a').write('x')\n"
    for folder in ("some", "other"):
        (tmp_path / folder / "once_only.py").write_text(f"{body}where = {folder!r}\n")
    (tmp_path / "link.py").symlink_to(tmp_path / "some" / "once_only.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "some"))
    first = registry.by_path("some/once_only.py", "rewards")
    for place in ("./some/../some/once_only.py", str(tmp_path / "some" / "once_only.py"), "link.py"):
        assert registry.by_path(place, "tasks") is first
    assert registry.by_name("once_only") is first
    other = registry.by_path("other/once_only.py", "rewards")
    assert (first.where, other.where) == ("some", "other"), "whatever their stem"
    assert (tmp_path / "some" / "once_only.log").read_text() == "x"
    assert (tmp_path / "other" / "once_only.log").read_text() == "x"


def test_an_imported_module_is_not_executed_again_by_its_path(tmp_path: Path, monkeypatch):
    (tmp_path / "imported_first.py").write_text("calls = []")
    monkeypatch.chdir(tmp_path)
    assert registry.by_name("imported_first") is registry.by_path("imported_first.py", "rewards")


def test_a_file_that_fails_is_executed_again(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mended.py"
    path.write_text("1 / 0")
    with pytest.raises(
        RelgradError, match=r"'mended.py' cannot be executed \(ZeroDivisionError.*\n.*mended.py\", line 1"
    ):
        registry.find("rewards", "mended.py")
    path.write_text("value = 1  # longer than before, so that no cached bytecode is taken for it")
    assert registry.by_path("mended.py", "rewards").value == 1


def test_functions_of_trl_run_as_they_are():
    pytest.importorskip("trl.rewards")
    components = [
        {"kind": "function", "function": "trl.rewards:think_format_reward", "name": "format"},
        {
            "kind": "function",
            "function": "trl.rewards:get_repetition_penalty_reward",
            "name": "repetition",
            "arguments": {"ngram_size": 2},
        },
    ]
    rewards = build_rewards([RewardComponent.model_validate(c) for c in components], 30.0)
    table = rewards(rollouts((CHAT, ["<think>so</think> 6", "55555"])))
    assert values(table) == [[1, pytest.approx(_repetition("<think>so</think> 6"))], [0, pytest.approx(-0.75)]]


def _repetition(text: str) -> float:
    pairs = [text[i : i + 2] for i in range(len(text) - 1)]
    return -(1 - len(set(pairs)) / len(pairs))


def test_accuracy_reward_of_trl():
    pytest.importorskip("trl.rewards")
    pytest.importorskip("math_verify", reason="math-verify is not installed (pip install 'relgrad[math]')")
    component = RewardComponent.model_validate({"kind": "function", "function": "trl.rewards:accuracy_reward"})
    chat = Prompt(CHAT.content, {"solution": r"$\frac{1}{3}$"})
    table = build_rewards([component], 30.0)(rollouts((chat, [r"$\boxed{\frac{1}{3}}$", r"$\boxed{\frac{1}{2}}$"])))
    assert values(table) == [[1], [0]]


def test_every_kind_is_found():
    kinds = {"exact", "number", "regex", "reasoning_gym", "overlong", "math_verify", "function"}
    assert set(registry.kinds("rewards")) >= kinds
    for kind in registry.kinds("rewards"):
        module = registry.find("rewards", kind)
        assert module.Settings.model_config["extra"] == "forbid"
        assert callable(module.build)
