"""Language models that somebody else runs: the endpoint against a real server, replay, the scripted solver, transformers."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from chat_server import Answer, says, serving
from relgrad.backends import endpoint, local, replay, scripted
from relgrad.backends.pace import LONGEST_WAIT, Pace, wait_after
from relgrad.backends.protocol import Backend, CallFailed, Reply, Request, Usage
from relgrad.core.errors import RelgradError
from relgrad.core.settings import Component, checked, settings_of
from served_model import served_smollm2

HELLO = Request(({"role": "user", "content": "hello"},), max_tokens=5, seed=3)


def ask(backend: Backend, *requests: Request) -> list[Reply]:
    """All replies, asked at once."""

    async def together() -> list[Reply]:
        try:
            return list(await asyncio.gather(*map(backend.generate, requests or (HELLO,))))
        finally:
            await backend.close()

    return asyncio.run(together())


def client(url: str, **settings: Any) -> endpoint.Endpoint:
    options = {"url": url, "model": "m", "first_wait": 0.01, "timeout": 20, **settings}
    return endpoint.build(checked(options, endpoint.Settings, "backend"))


# ---------------------------------------------------------------------- the endpoint


def test_an_endpoint_is_asked_and_its_answer_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "of-the-server")
    with serving(lambda *_: says("hi", logprobs={"content": [{"logprob": -0.5}, {"logprob": -1.0}]})) as server:
        section = {"kind": "endpoint", "url": server.url, "model": "m", "key": "env:A_KEY", "logprobs": True}
        section["prices"] = {"m": {"input": 100, "output": 1000}}
        backend = endpoint.build(settings_of(Component(**section), endpoint.Settings, "backend"))
        (reply,) = ask(backend)
    assert (reply.text, reply.finish, reply.model) == ("hi", "stop", "m")
    assert reply.usage == Usage(1, 7, 3, pytest.approx(7e-4 + 3e-3))
    assert reply.logprobs == (-0.5, -1.0)
    assert reply.logp == -1.5
    body, headers = server.asked[0]
    assert headers["Authorization"] == "Bearer of-the-server"
    assert body == {
        "model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5, "temperature": 1.0, "top_p": 1.0,
        "seed": 3, "logprobs": True,
    }  # fmt: skip


BAD = [
    Answer({"error": {"message": "slow down"}}, 429),
    Answer({"detail": "oh"}, 500),
    Answer(b'{"choices": ['),
    Answer({"choices": []}),
    Answer({"choices": [{"message": {"content": None}}]}),
]


def test_what_passes_is_waited_for_and_what_may_have_cost_is_counted() -> None:
    with serving(lambda number, _: [*BAD, says("at last")][number]) as server:
        backend = client(server.url, retries=5, prices={"m": {"input": 1, "output": 1}})
        (reply,) = ask(backend)
        once = backend._once(HELLO)
    assert reply.text == "at last"
    assert len(server.asked) == 6
    # an answer refused with a status is a request and costs nothing; the three that cannot be read count at their worst
    assert reply.usage == Usage(calls=2).plus(once.times(3)).plus(Usage(1, 7, 3, 10e-6))
    assert all(mine <= most for mine, most in zip(reply.usage, backend.worst(HELLO), strict=True))


@pytest.mark.parametrize(
    ("answer", "settings", "message", "fatal", "asked"),
    [
        (BAD[0], {"retries": 2}, "status 429: slow down (3 attempts", False, 3),
        (BAD[1], {"retries": 1}, "status 500: oh (2 attempts", False, 2),
        (BAD[2], {"retries": 1}, "no JSON", False, 2),
        (Answer({"error": {"message": "bad key"}}, 401), {}, "status 401: bad key; is `key` right?", True, 1),
        (Answer({"detail": "no such model"}, 404), {}, "is there a model 'm'?", True, 1),
        (Answer({"error": "too long"}, 400), {}, "status 400: too long", False, 1),
        (says("hi", model="another"), {}, "model 'm' was asked for, and 'another' answers", True, 1),
        (Answer({}, 429, {"Retry-After": "3600"}), {"deadline": 60}, "status 429", False, 1),
        (Answer({}, hang=60), {"timeout": 0.2, "retries": 0}, "no answer within 0.2 s", False, 1),
        (Answer({}, hang=60), {"deadline": 0.3}, "no answer", False, 1),
    ],
)  # fmt: skip
def test_what_fails_says_why(answer: Answer, settings: dict[str, Any], message: str, fatal: bool, asked: int) -> None:
    with serving(lambda *_: answer) as server, pytest.raises(CallFailed) as failed:
        ask(client(server.url, **settings))
    assert message in str(failed.value)
    assert failed.value.fatal == fatal
    assert len(server.asked) == asked or answer.hang, "a request may not have gone out before its time was up"
    assert failed.value.usage.calls == asked


def test_an_endpoint_that_is_down_says_so() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(CallFailed, match=r"no connection .* \(2 attempts") as failed:
        ask(client(url, retries=1))
    assert failed.value.fatal
    assert failed.value.usage == Usage()


def test_another_model_may_answer_where_that_is_wanted_and_a_dated_name_is_the_same() -> None:
    for answering, settings in (("m-2026-01-01", {}), ("another", {"any_model": True})):
        with serving(lambda *_, name=answering: says("hi", model=name)) as server:
            assert ask(client(server.url, **settings))[0].model == answering


@pytest.mark.parametrize(
    ("name", "answering", "same"),
    [
        ("gpt-4o", "gpt-4o-2024-08-06", True),
        ("/models/smollm2", "/models/smollm2@main", True),
        ("/models/smollm2", "/models/smollm2@other", False),
        ("gpt-4", "gpt-4-0613", True),
        ("mistral-small-latest", "mistral-small-2409", True),
        ("llama3", "llama3:latest", True),
        ("gemini-1.5-pro", "gemini-1.5-pro-002", True),
        ("gpt-4o", "gpt-4o-mini", False),
        ("gpt-4o-mini", "gpt-4o", False),
        ("gpt-4", "gpt-4-32k", False),
        ("claude-3", "claude-3-5", False),
    ],
)
def test_a_date_or_a_version_makes_no_other_model(name: str, answering: str, same: bool) -> None:
    backend = client("http://127.0.0.1:1/v1", model=name)
    if same:
        backend._require_model(answering, Usage())
    else:
        with pytest.raises(CallFailed, match="was asked for"):
            backend._require_model(answering, Usage())


def test_tokens_that_nobody_counted_count_at_their_most() -> None:
    with serving(lambda *_: Answer({"choices": [{"message": {"content": "hi"}}]})) as server:
        (reply,) = ask(client(server.url))
    assert reply.estimated
    assert reply.usage.output_tokens == 5
    assert reply.usage.input_tokens >= len("hello")


def test_requests_keep_apart_and_are_not_too_many_at_once() -> None:
    running: list[int] = [0, 0]
    starts: list[float] = []

    async def one(pace: Pace) -> None:
        async with pace.turn():
            starts.append(asyncio.get_running_loop().time())
            running[0] += 1
            running[1] = max(running)
            await asyncio.sleep(0.01)
            running[0] -= 1

    async def all_of_them() -> None:
        pace = Pace(concurrency=2, per_minute=60 / 0.02)
        await asyncio.gather(*(one(pace) for _ in range(5)))

    asyncio.run(all_of_them())
    assert running[1] <= 2
    assert starts[-1] - starts[0] >= 4 * 0.02 - 1e-6


def test_waiting_for_a_turn_counts_against_no_deadline() -> None:
    requests = [Request(HELLO.messages, max_tokens=5, seed=seed) for seed in range(24)]
    with serving(lambda *_: Answer(says("hi").body, hang=0.1)) as server:
        replies = ask(client(server.url, concurrency=2, deadline=1.0), *requests)
    assert len(server.asked) == len(replies) == 24
    assert sum(reply.usage.calls for reply in replies) == 24


def test_whoever_is_cancelled_while_waiting_takes_no_turn() -> None:
    async def next_turns() -> tuple[float, float]:
        pace = Pace(concurrency=8, per_minute=1)
        async with pace.turn():
            before = pace._next
        waiting = [asyncio.create_task(pace.turn().__aenter__()) for _ in range(3)]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        return before, pace._next

    before, after = asyncio.run(next_turns())
    assert after == before


def test_waits_grow_twofold_up_to_the_longest() -> None:
    waits = [wait_after(attempt, 1.0, seed=0) for attempt in range(1, 9)]
    assert all(w / 2 <= wait <= w for wait, w in zip(waits, [1, 2, 4, 8, 16, LONGEST_WAIT, LONGEST_WAIT, LONGEST_WAIT]))  # noqa: B905
    assert wait_after(1, 1.0, 0) != wait_after(1, 1.0, 1)


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(RelgradError, match="url begins with http"):
        client("localhost:8000")


# ---------------------------------------------------------------------- record and replay


def test_what_was_recorded_is_given_again_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "replies.jsonl"
    with serving(lambda number, _: says(f"reply {number}")) as server:
        of = {"kind": "endpoint", "url": server.url, "model": "m"}
        record = checked({"file": file, "mode": "record", "of": of}, replay.Settings, "backend")
        first = ask(replay.build(record), HELLO)
        assert ask(replay.build(record), HELLO) == first
        assert len(server.asked) == 1
    again = replay.build(replay.Settings(file=file))
    assert ask(again, HELLO) == first
    with pytest.raises(CallFailed, match="holds no reply to this request, which begins 'hello'") as failed:
        ask(again, Request(HELLO.messages, seed=4))
    assert failed.value.fatal
    with pytest.raises(RelgradError, match="no file"):
        replay.build(replay.Settings(file=tmp_path / "none"))
    file.write_text('{"no": "reply"}\n')
    with pytest.raises(RelgradError, match="is no recorded reply"):
        replay.build(replay.Settings(file=file))
    with pytest.raises(RelgradError, match="mode: record goes with `of`"):
        checked({"file": file, "mode": "record"}, replay.Settings, "backend")


def test_a_recording_that_was_killed_in_a_line_loses_that_line_only(tmp_path: Path) -> None:
    file, second = tmp_path / "replies.jsonl", Request(HELLO.messages, max_tokens=5, seed=4)
    with serving(lambda number, _: says(f"reply {number}")) as server:
        of = {"kind": "endpoint", "url": server.url, "model": "m"}
        record = checked({"file": file, "mode": "record", "of": of}, replay.Settings, "backend")
        (kept,) = ask(replay.build(record), HELLO)
        with file.open("a") as torn:
            torn.write('{"key": "half of a li')
        ask(replay.build(record), second)
    again = ask(replay.build(replay.Settings(file=file)), HELLO, second)
    assert again[0] == kept
    assert again[1].text == "reply 1"


# ---------------------------------------------------------------------- the scripted solver

PROBLEM = {"type": "story", "answer": "4", "wrong": ["5", "6", "7"]}


def about(operator: str, **more: str) -> list[Request]:
    messages = ({"role": "user", "content": "?"},)
    return [
        Request(messages, seed=seed, about={"operator": operator, "problem": PROBLEM, **more}) for seed in range(300)
    ]


@pytest.mark.parametrize(
    ("operator", "more", "text", "chance"),
    [
        ("generate", {"prompt": "plain"}, "answer: 4", 0.55),
        ("generate", {"prompt": "careful"}, "answer: 4", 0.7),
        ("generate", {"prompt": "unheard of"}, "answer: 4", 0.55),
        ("generate", {"prompt": "plain"}, "answer: 6", 0.15),
        ("program", {}, "print(4)", 0.4),
        ("review", {"solution": "4"}, "right", 0.8),
        ("review", {"solution": "5"}, "right", 0.4),
        ("revise", {"solution": "5"}, "answer: 4", 0.4),
        ("revise", {"solution": "5"}, "answer: 5", 0.6),
        ("revise", {"solution": "4"}, "answer: 4", 0.9),
        ("format", {"solution": "9"}, "answer: 9", 1.0),
    ],
)
def test_the_scripted_solver_errs_at_its_rates(operator: str, more: dict[str, str], text: str, chance: float) -> None:
    solver = scripted.build(scripted.Settings(), seed=1)
    replies = ask(solver, *about(operator, **more))
    share = Counter(reply.text for reply in replies)[text] / len(replies)
    assert abs(share - chance) <= 4.5 * (chance * (1 - chance) / len(replies)) ** 0.5
    assert replies[:20] == ask(scripted.build(scripted.Settings(), seed=1), *about(operator, **more)[:20])


def test_the_scripted_solver_has_prices_and_knows_its_problems() -> None:
    solver = scripted.build(scripted.Settings())
    paid = [ask(solver, about("generate", prompt=prompt)[0])[0].usage.money for prompt in ("plain", "careful")]
    assert paid == [1.0, 2.0]
    with pytest.raises(CallFailed, match="problems of type sum, story, riddle only"):
        ask(solver, HELLO)


# ---------------------------------------------------------------------- transformers in this process


def test_a_local_model_answers_with_its_log_probabilities() -> None:
    backend = local.build(local.Settings(model="tiny", chat=False))
    greedy = Request(HELLO.messages, max_tokens=4, temperature=0)
    first, again, other, certain = ask(backend, HELLO, HELLO, Request(HELLO.messages, max_tokens=5, seed=4), greedy)
    assert first.text == again.text
    assert first.logprobs == again.logprobs
    assert first.token_ids != other.token_ids
    assert len(first.token_ids) == len(first.logprobs) == first.usage.output_tokens <= 5
    assert first.usage.input_tokens == backend.worst(HELLO).input_tokens
    assert certain.logprobs == (0.0,) * certain.usage.output_tokens
    with pytest.raises(CallFailed, match="more than the model's context"):
        ask(backend, Request(HELLO.messages, max_tokens=100_000))


@pytest.mark.slow
def test_transformers_serve_answers_like_any_endpoint(tmp_path: Path) -> None:
    """The converted SmolLM2 of relgrad's cache behind `transformers serve`: a real server with a real model."""
    log = tmp_path / "log"
    with served_smollm2(log) as (url, model):
        backend = client(url, model=model, timeout=120)
        question = Request(
            ({"role": "user", "content": "What is the capital of France?"},), max_tokens=12, temperature=0
        )
        (reply,) = ask(backend, question)
    assert "Paris" in reply.text, (reply, log.read_text()[-2000:])
    assert 0 < reply.usage.output_tokens <= 12
    assert reply.usage.input_tokens > 5
