"""The search for workflows: statistics and rules with known answers, budgets kept to the call, exact resume, failures."""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import forked
from chat_server import Answer, says, serving
from commands import lines, relgrad
from relgrad.backends.protocol import Reply, Request, Usage
from relgrad.commands.cli import app
from relgrad.core.errors import RelgradError
from relgrad.core.settings import Component
from relgrad.environments.workflows import file
from relgrad.environments.workflows.edits import Space, neighbours
from relgrad.environments.workflows.execute import Outcome
from relgrad.environments.workflows.language import NoWorkflow, parse
from relgrad.environments.workflows.operators import Calculator
from relgrad.environments.workflows.problem import Problem
from relgrad.runs.search import load_search, run_search
from relgrad.search.budget import Budget, BudgetSpent
from relgrad.search.journal import HOPELESS, Asker, Journal
from relgrad.search.prior import MIX, SHARPNESS, Prior, kind_of_edit, learn, read
from relgrad.search.proposals import Grammar
from relgrad.search.selection import choose, puct_scores, soft_chances
from relgrad.search.settings import Budget as Limits
from relgrad.search.settings import Search, Selection
from relgrad.search.settings import Trials as Repeats
from relgrad.search.tree import Node, Tree, Trial
from relgrad.search.trials import Trials

# ---------------------------------------------------------------------- statistics and rules


def tree_of(*values: tuple[int | None, list[float]], backup: Any = "mean") -> Tree:
    """A tree of (parent, scores of its trials); workflows of more and more votes."""
    tree = Tree("", backup)
    for number, (parent, scores) in enumerate(values):
        node = tree.add(Node(number, parent, parse(f"ensemble({number + 2} * generate())"), "", number))
        for trial, score in enumerate(scores):
            right = score if math.isnan(score) else float(score > 0)
            node.keep(trial, Trial("p", trial, Outcome("", right, ()), number + 1.0, score))
    tree.back_up(0)
    return tree


SMALL = ((None, [0.0, 1.0]), (0, [1.0, 1.0]), (0, [0.0, 0.0]), (1, [0.5, math.nan]), (1, [math.nan]))


def test_a_tree_counts_and_averages_its_subtrees() -> None:
    tree = tree_of(*SMALL)
    assert [node.visits for node in tree.nodes] == [4, 2, 1, 1, 0]
    assert [node.q for node in tree.nodes[:4]] == [0.5, 0.75, 0.0, 0.5]
    assert math.isnan(tree.nodes[4].q), "a workflow that nothing could be told of is unscored, and not 0"
    assert [node.depth for node in tree.nodes] == [0, 1, 1, 2, 2]
    assert [node.q for node in tree_of(*SMALL, backup="max").nodes[:4]] == [1.0, 1.0, 0.0, 0.5]
    assert tree.nodes[0].history == [(0, 4, 0.5)]
    assert tree.best(1.0).number == 1
    assert [node.number for node in tree.front()] == [0, 1]
    assert tree.nodes[1].error == pytest.approx(math.sqrt(0.25 / 4)), "few equal values are not certain"
    assert tree.nodes[0].error == pytest.approx(math.sqrt((0.5 + 0.25) / 4))


@pytest.mark.parametrize(
    ("sharpness", "mix", "chances"),
    [
        (0.4, 0.2, [0.420, 0.298, 0.216, 0.065]),
        (0.2, 0.4, [0.323, 0.283, 0.249, 0.145]),
        (0.2, 0.3, [0.335, 0.288, 0.249, 0.128]),
    ],
)
def test_aflows_rule_has_its_published_probabilities(sharpness: float, mix: float, chances: list[float]) -> None:
    assert soft_chances([0.93, 0.92, 0.91, 0.85], mix, sharpness) == pytest.approx(chances, abs=6e-4)


def test_aflows_rule_draws_by_its_probabilities_and_tells_them() -> None:
    tree = tree_of((None, [0.2]), (0, [0.3]), (0, [0.1]), (1, [0.25]), (1, [0.28]))
    settings = Selection(rule="aflow", top_k=3)
    chances = dict(zip([0, 1, 4], soft_chances([0.2, 0.3, 0.28], 0.3, 0.2), strict=True))
    draws = [choose(tree, settings, random.Random(seed)) for seed in range(2000)]
    counts = Counter(choice.node.number for choice in draws)
    assert counts.keys() == chances.keys(), "the first workflow and the best two others"
    for number, chance in chances.items():
        assert abs(counts[number] / 2000 - chance) <= 4.5 * math.sqrt(chance * (1 - chance) / 2000)
    assert all(choice.logp == pytest.approx(math.log(chances[choice.node.number])) for choice in draws)


def test_puct_is_its_formula_and_goes_down_to_where_there_is_room() -> None:
    tree = tree_of(*SMALL[:4])
    one, two = tree.nodes[1], tree.nodes[2]
    one.prior, two.prior = 0.3, 0.1
    scores = puct_scores(tree, tree.root, [one, two], exploration=2.0, noise=0.5)
    priors = [0.5 * 0.75 + 0.25, 0.5 * 0.25 + 0.25]
    assert scores == pytest.approx([0.75 + 2 * priors[0] * 2 / 3, 0 + 2 * priors[1] * 2 / 2])
    # N = 4: the root has room for 4 children with widening 2, for 2 with widening 1
    assert choose(tree, Selection(widening=2.0), random.Random(0)).node is tree.root
    chosen = choose(tree, Selection(widening=1.0), random.Random(0))
    assert (chosen.node.number, chosen.logp) == (1, 0.0)
    for node in tree.nodes:
        node.exhausted = True
    assert choose(tree, Selection(), random.Random(0)) is None
    assert choose(tree, Selection(rule="aflow"), random.Random(0)) is None
    two.exhausted = False
    assert choose(tree, Selection(), random.Random(0)).node is two


def test_the_grammar_says_how_likely_its_proposals_were() -> None:
    space = Space(max_size=4)
    tree = Tree("", "mean")
    root = tree.add(Node(0, None, parse("generate()"), "", 0))
    edits = neighbours(root.step, space)
    seen = next(iter(edits))
    tree.add(Node(1, 0, seen, "", 1))
    left = {step: edit.probability / (1 - edits[seen].probability) for step, edit in edits.items() if step != seen}
    proposals = [asyncio.run(Grammar(space).propose(tree, root, seed))[0] for seed in range(500)]
    counts = Counter(proposal.step for proposal in proposals)
    assert counts.keys() <= left.keys()
    for step, chance in left.items():
        assert abs(counts[step] / 500 - chance) <= 4.5 * math.sqrt(chance * (1 - chance) / 500)
    assert all(proposal.logp == pytest.approx(math.log(left[proposal.step])) for proposal in proposals)
    assert all(proposal.prior == edits[proposal.step].probability for proposal in proposals)
    for number, step in enumerate(left, 2):
        tree.add(Node(number, 0, step, "", number))
    assert asyncio.run(Grammar(space).propose(tree, root, 0)) == (None, ())


# ---------------------------------------------------------------------- trials


def trials_with(answer: Any, problems: int = 4, **settings: Any) -> Trials:
    """Executions whose only call is answered by `answer(request)`."""

    async def ask(request: Request) -> Reply:
        return Reply(answer(request), Usage(1, 1, 1, 0.0), "m")

    search = Search(backend=Component(kind="x"), problems=Component(kind="x"), cost="calls", **settings)
    return Trials([Problem(str(n), f"{n}?", "1") for n in range(problems)], search, ask, 0, Calculator())


def test_a_workflow_is_repeated_until_it_is_clear() -> None:
    def executed(answer: str, best: str, most: int = 40) -> tuple[int, int]:
        made = trials_with(
            lambda r: f"answer: {answer if 'plain' in r.about['prompt'] else best}", trials=Repeats(first=4, most=most)
        )
        node, other = Node(0, None, parse("generate()"), "", 0), Node(1, None, parse("generate(careful)"), "", 0)
        asyncio.run(made.repeat(other, 4))
        asyncio.run(made.until_clear(node, other))
        return len(node.trials), len(other.trials)

    assert executed("0", "1") == (4, 4), "clearly worse"
    assert executed("1", "0") == (4, 4), "clearly better"
    assert executed("1", "1") == (4, 4), "not better"


def test_trials_are_the_same_problems_and_seeds_for_all_and_are_executed_once() -> None:
    asked: list[Request] = []

    def answer(request: Request) -> str:
        asked.append(request)
        return "answer: 1"

    made = trials_with(answer, problems=3, trials=Repeats(share=False))
    nodes = [
        Node(n, None, parse(t), "", 0) for n, t in enumerate(("generate()", "generate(careful)", "generate(plain)"))
    ]
    for node in nodes:
        asyncio.run(made.repeat(node, 5))
    assert len(asked) == 10, "the third is the first"
    keys = [[(r.about["id"], r.seed) for r in asked[start : start + 5]] for start in (0, 5)]
    assert keys[0] == keys[1]
    assert len(set(keys[0])) == 5
    assert Counter(problem for problem, _ in keys[0]).most_common()[0][1] == 2


def test_equal_parts_of_workflows_share_their_replies_and_parts_of_one_workflow_share_none() -> None:
    asked: list[tuple[Any, ...]] = []

    def answer(request: Request) -> str:
        asked.append((request.about["operator"], request.about["prompt"], request.about["solution"], request.seed))
        return "wrong" if request.about["operator"] == "verify" else "answer: 1"

    made = trials_with(answer, problems=1)

    def executed(text: str) -> list[tuple[Any, ...]]:
        asked.clear()
        asyncio.run(made.repeat(Node(0, None, parse(text), "", 0), 1))
        return sorted(asked)

    one, votes = executed("generate()"), executed("ensemble(3 * generate())")
    assert len(set(votes)) == 3, "votes are independent"
    assert set(one) < set(votes), "one vote is the answer of the single call"
    (first,) = executed("generate(careful)")
    verified = executed("verify(generate(careful), generate())")
    assert {first, *one} < set(verified)
    assert verified[-1] == executed("verify(generate(careful), program())")[-1], (
        "the same question about the same answer"
    )
    assert len(set(executed("verify(generate(), verify(generate(), generate()))"))) == 5


def test_workflows_that_answer_the_same_are_one() -> None:
    tree = tree_of((None, [1.0, 0.0]), (0, [1.0, 0.0]), (0, [1.0, 1.0]))
    for node in tree.nodes:
        for number, trial in node.trials.items():
            node.trials[number] = trial._replace(cost=1.0, outcome=Outcome(str(trial.value), trial.value, ()))
    assert tree.find_same(tree.nodes[0], 2) is None
    assert tree.find_same(tree.nodes[1], 2) is tree.nodes[0]
    assert tree.find_same(tree.nodes[2], 2) is None
    assert tree.find_same(tree.nodes[1], 3) is None, "too few trials to tell"


# ---------------------------------------------------------------------- budgets


def test_a_budget_reserves_the_worst_case() -> None:
    budget = Budget(Limits(calls=3, tokens=100, money=2.0))
    budget.reserve(Usage(1, 30, 30, 0.5))
    with pytest.raises(BudgetSpent, match="budget: tokens, 100"):
        budget.reserve(Usage(1, 30, 30, 0.5))
    budget.settle(Usage(1, 30, 30, 0.5), Usage(1, 10, 5, 0.1))
    assert (budget.spent, budget.reserved) == (Usage(1, 10, 5, 0.1), Usage())
    budget.reserve(Usage(1, 30, 30, 0.5))
    budget.charge(Usage(1, 0, 0, 0.0))
    with pytest.raises(BudgetSpent, match="budget: calls, 3"):
        budget.reserve(Usage(1, 0, 0, 0.0))
    with pytest.raises(BudgetSpent, match="budget: money, 2"):
        budget.reserve(Usage(0, 0, 0, 1.8))
    with pytest.raises(BudgetSpent, match="budget: seconds, 5"):
        Budget(Limits(seconds=5), seconds_before=6).reserve(Usage(1, 0, 0, 0.0))
    half = Budget(Limits(calls=10))
    half.charge(Usage(calls=4))
    half.narrow(2)
    half.reserve(Usage(calls=3))
    with pytest.raises(BudgetSpent, match="budget: calls, 7"):
        half.reserve(Usage(calls=1))


class Counting:
    """A back end whose calls cost one of at most five."""

    identity, priced = "counting", False

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.calls = seconds, 0

    def worst(self, request: Request) -> Usage:
        return Usage(calls=5)

    async def generate(self, request: Request) -> Reply:
        self.calls += 1
        await asyncio.sleep(self.seconds)
        return Reply("answer: 1", Usage(calls=1), "m")

    async def close(self) -> None:
        """Nothing to give back."""


def answered(asker: Asker, count: int) -> list[Reply | BaseException]:
    """What comes of so many questions asked at once."""
    requests = [Request(({"role": "user", "content": str(number)},)) for number in range(count)]

    async def together() -> list[Reply | BaseException]:
        return await asyncio.gather(*map(asker.ask, requests), return_exceptions=True)

    return asyncio.run(together())


def test_calls_wait_for_what_others_do_not_cost(tmp_path: Path) -> None:
    """A hundred calls may be made, and each is reserved at five: all but the last four are made, however many ask at once."""
    backend, budget = Counting(), Budget(Limits(calls=100))
    outcomes = answered(Asker(backend, Journal(tmp_path / "calls.jsonl"), budget), 130)
    assert budget.spent.calls == backend.calls == 96
    assert sum(isinstance(outcome, BudgetSpent) for outcome in outcomes) == 34
    assert budget.ended == "budget: calls, 100"
    assert budget.reserved == Usage()


def test_a_call_that_outlives_the_seconds_is_broken_off_and_counts_at_its_worst(tmp_path: Path) -> None:
    budget, journal = Budget(Limits(seconds=0.2)), Journal(tmp_path / "calls.jsonl")
    (outcome,) = answered(Asker(Counting(seconds=600), journal, budget), 1)
    assert isinstance(outcome, BudgetSpent)
    assert str(outcome) == budget.ended == "budget: seconds, 0.2"
    assert budget.spent.calls == 5
    journal.close()
    again = Journal(journal.path)
    assert (again.in_flight, again.lost) == (1, Usage(calls=5))


@pytest.mark.parametrize(
    ("then", "now", "ends"),
    [
        ({"calls": 9}, {"calls": 9}, True),
        ({"calls": 9}, {"calls": 8, "money": 3.0}, True),
        ({"calls": 9}, {"calls": 10}, False),
        ({"calls": 9}, {}, False),
        ({"calls": 9, "seconds": 5}, {"calls": 9}, False),
    ],
)
def test_a_spent_budget_ends_a_search_until_it_grows(
    tmp_path: Path, then: dict[str, Any], now: dict[str, Any], ends: bool
) -> None:
    journal = Journal(tmp_path / "calls.jsonl")
    journal.spent("tree", "budget: calls, 9", Limits(**then), 1.0)
    journal.close()
    again = Journal(journal.path)
    assert again.why_ended("tree", Limits(**now)) == ("budget: calls, 9" if ends else None)
    assert again.why_ended("another", Limits(**now)) is None


QUICK: dict[str, Any] = {
    "backend": {"kind": "scripted"},
    "problems": {"kind": "noisy", "count": 12},
    "cost_weight": 0.02,
    "proposer": {"kind": "grammar", "max_size": 5},
}


def recipe(folder: Path, name: str = "s", **search: Any) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, "out": str(folder / "runs"), "search": {**QUICK, **search}}))
    return path


def searched(folder: Path, name: str = "s", *, fresh: bool = False, **search: Any) -> tuple[dict[str, Any], Path]:
    """The result of a search, and its folder."""
    loaded = load_search(str(recipe(folder, name, **search)))
    return run_search(loaded, fresh=fresh), loaded.folder


@pytest.mark.parametrize(
    ("budget", "key"), [({"calls": 50}, "calls"), ({"tokens": 6_000}, "tokens"), ({"money": 60.5}, "money")]
)
def test_a_search_keeps_its_budget(tmp_path: Path, budget: dict[str, float], key: str) -> None:
    result, _ = searched(tmp_path, budget=budget, test_repeats=0)
    spent = result["spent"][key]
    assert spent <= budget[key]
    assert result["reasons"] == [f"budget: {key}, {budget[key]:g}"]
    if key == "calls":
        assert spent == 50, "to the call"


def test_a_search_whose_budget_is_spent_pays_nothing_when_it_is_run_again(tmp_path: Path) -> None:
    """By tokens, of which a call mostly costs less than its worst: something is left, and is not spent bit by bit."""
    result, folder = searched(tmp_path, budget={"tokens": 3_000}, test_repeats=0)
    before = (folder / "calls.jsonl").read_bytes(), stories(folder)
    again, _ = searched(tmp_path, budget={"tokens": 3_000}, test_repeats=0)
    assert without_time(again) == without_time(result)
    assert ((folder / "calls.jsonl").read_bytes(), stories(folder)) == before
    spent = result["spent"]["tokens"]
    with pytest.raises(RelgradError, match=rf"search\.budget\.tokens=500, and this search has spent {spent} already"):
        searched(tmp_path, budget={"tokens": 500}, test_repeats=0)
    more, _ = searched(tmp_path, budget={"tokens": 4_000}, test_repeats=0)
    assert 3_000 < more["spent"]["tokens"] <= 4_000
    assert more["reasons"] == ["budget: tokens, 4000"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, Path]:
    """A search that was not interrupted: its result, its folder, and the folder that this is in."""
    place = tmp_path_factory.mktemp("whole")
    result, folder = searched(place, iterations=14, test_repeats=2)
    return result, folder, place


def test_a_search_finds_something_and_says_what_it_is_worth(whole: tuple[dict[str, Any], Path, Path]) -> None:
    result, folder, _ = whole
    assert result["reasons"] == ["iterations, 14"]
    assert result["workflows"] == 14
    best = result["best"][0]
    assert parse(best["workflow"]).text == best["workflow"]
    assert 0 <= result["exact"]["regret"] <= 1
    assert result["exact"]["optimum"]
    assert [row["name"] for row in result["test"]][:3] == ["best", "one call", "step by step"]
    assert all(row["problems"] == 6 for row in result["test"])
    assert result["test"][0]["low"] <= result["test"][0]["score"] <= result["test"][0]["high"]
    assert {path.name for path in folder.iterdir()} == {
        "search.yaml", "calls.jsonl", "trajectories.jsonl", "tree.json", "result.json", "search.html",
    }  # fmt: skip


def test_trajectories_carry_both_factors(whole: tuple[dict[str, Any], Path, Path]) -> None:
    """exp(edit_logp) is the probability of the edit among those that were new when it was drawn; PUCT draws nothing."""
    _, folder, _ = whole
    edits = lines(folder / "trajectories.jsonl")
    assert [edit["node"] for edit in edits] == list(range(14))
    space = Space(max_size=5)
    known: set[str] = set()
    for edit in edits:
        if edit["parent"] is None:
            assert edit["edit_logp"] is None
        else:
            assert edits[edit["parent"]]["workflow"] == edit["from"]
            new = {
                s.text: e.probability for s, e in neighbours(parse(edit["from"]), space).items() if s.text not in known
            }
            assert math.exp(edit["edit_logp"]) == pytest.approx(new[edit["workflow"]] / math.fsum(new.values()))
            assert edit["select_logp"] == 0.0
        known.add(edit["workflow"])
        scores = [one["score"] for one in edit["executions"]]
        assert edit["score"] == pytest.approx(math.fsum(scores) / len(scores))


def test_aflows_rule_tells_which_parent_it_drew(tmp_path: Path) -> None:
    _, folder = searched(tmp_path, iterations=8, test_repeats=0, selection={"rule": "aflow"})
    drawn = [line["select_logp"] for line in lines(folder / "trajectories.jsonl")[1:]]
    assert drawn[0] == 0.0
    assert any(-5 < logp < 0 for logp in drawn)
    assert all(logp <= 0 for logp in drawn)


def without_time(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "spent": {**record["spent"], "seconds": 0}}


def stories(folder: Path) -> tuple[Any, Any]:
    return json.loads((folder / "tree.json").read_text())["trees"], lines(folder / "trajectories.jsonl")


CUTS = [pytest.param(0, marks=pytest.mark.slow), 1, pytest.param(40, marks=pytest.mark.slow), 117]


@pytest.mark.parametrize("kept", CUTS)
def test_a_search_cut_off_anywhere_goes_on_exactly(
    whole: tuple[dict[str, Any], Path, Path], tmp_path: Path, kept: int
) -> None:
    """The journal is cut after so many lines, the last of them torn: nothing that it holds is asked again, all else is the same."""
    result, folder, _ = whole
    content = (folder / "calls.jsonl").read_bytes().splitlines(keepends=True)
    here = tmp_path / "runs" / "s"
    here.mkdir(parents=True)
    (here / "calls.jsonl").write_bytes(b"".join(content[:kept]) + content[kept][:20])
    again, _ = searched(tmp_path, iterations=14, test_repeats=2)
    assert stories(here) == stories(folder)
    assert again["best"] == result["best"]
    assert again["test"] == result["test"]
    asked = Counter(line["asked"] for line in lines(here / "calls.jsonl") if "asked" in line)
    twice = sum(count - 1 for count in asked.values())
    assert twice == again["in_flight"]["calls"]
    assert again["spent"]["calls"] == result["spent"]["calls"] + twice


def test_a_search_that_is_finished_is_not_paid_again(whole: tuple[dict[str, Any], Path, Path]) -> None:
    result, folder, place = whole
    before = (folder / "calls.jsonl").read_bytes()
    again, _ = searched(place, iterations=14, test_repeats=2)
    assert without_time(again) == without_time(result)
    assert (folder / "calls.jsonl").read_bytes() == before
    with pytest.raises(RelgradError, match=r"holds another search \(cost_weight: 0.02 there, 0.5 now\)"):
        searched(place, iterations=14, test_repeats=2, cost_weight=0.5)


def test_a_killed_search_goes_on(whole: tuple[dict[str, Any], Path, Path], tmp_path: Path) -> None:
    """A real process, killed in the middle of its calls: the calls under way are counted and said, nothing else is paid twice."""
    result, folder, _ = whole
    slow = {"kind": "scripted", "latency": 0.02}
    path = recipe(tmp_path, iterations=14, test_repeats=2, backend=slow)
    journal = tmp_path / "runs" / "s" / "calls.jsonl"
    process = forked.start(["relgrad", "search", str(path)], tmp_path / "output")
    deadline = time.monotonic() + 300
    while not (journal.is_file() and journal.read_bytes().count(b"\n") >= 45):
        assert process.is_alive(), (tmp_path / "output").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.join()
    ended = [line for line in journal.read_bytes().splitlines() if b'"reply"' in line]
    again = run_search(load_search(str(path)))
    kept = lines(journal)
    assert [json.dumps(line) for line in kept if "reply" in line][: len(ended)] == [
        json.dumps(json.loads(line)) for line in ended
    ]
    asked = Counter(line["asked"] for line in kept if "asked" in line)
    assert sum(count - 1 for count in asked.values()) == again["in_flight"]["calls"]
    assert again["spent"]["calls"] == result["spent"]["calls"] + again["in_flight"]["calls"]
    assert again["best"] == result["best"]
    assert stories(journal.parent) == stories(folder)


# ---------------------------------------------------------------------- other ways to search


def test_a_workflow_for_each_problem(tmp_path: Path) -> None:
    result, folder = searched(tmp_path, scope="problem", budget={"calls": 240}, problems={"kind": "noisy", "count": 4})
    assert len(result["best"]) == len(result["reasons"]) == 4, "of all problems"
    assert result["spent"]["calls"] <= 240
    assert result["test"] == []
    scopes = Counter(line["scope"] for line in lines(folder / "trajectories.jsonl"))
    assert len(scopes) == 4
    assert all(count > 1 for count in scopes.values()), "the budget is shared among the problems"
    for line in lines(folder / "trajectories.jsonl"):
        assert {one["problem"] for one in line["executions"]} <= {line["scope"]}


def test_it_ends_when_nothing_gets_better_or_everything_was_tried(tmp_path: Path) -> None:
    result, _ = searched(tmp_path, "a", patience=3, test_repeats=0, iterations=300)
    assert result["reasons"][0].startswith("patience: 3 workflows in a row") or result["workflows"] == 300
    tiny = {"kind": "grammar", "operators": ["generate", "program"], "max_size": 3}
    result, _ = searched(tmp_path, "b", proposer=tiny, test_repeats=0)
    assert result["reasons"] == ["every edit of every workflow was tried"]
    assert result["workflows"] == 3


# ---------------------------------------------------------------------- with an endpoint

QUESTIONS = "".join(json.dumps({"question": f"What is {n} + 1?", "answer": str(n + 1)}) + "\n" for n in range(8))


def chat(number: int, body: dict[str, Any]) -> Answer:
    """A server that solves sums when it is asked for a program, proposes one, and errs otherwise."""
    text = body["messages"][-1]["content"]
    sums = re.findall(r"(\d+) \+ 1", text)
    if text.startswith("You improve workflows"):
        return says(["no idea", "workflow: solve()", "workflow: generate()", "So:\nworkflow: `program()`"][number % 4])
    if "Reply with one program" in text:
        return says(f"```python\nprint({sums[-1]} + 1)\n```")
    return says("answer: 0")


def with_server(url: str, folder: Path, **search: Any) -> dict[str, Any]:
    (folder / "problems.jsonl").write_text(QUESTIONS)
    backend = {"kind": "endpoint", "url": url, "model": "m", "retries": 0, "first_wait": 0.01}
    section = {
        "backend": backend,
        "problems": {"kind": "file", "path": str(folder / "problems.jsonl")},
        "proposer": {"kind": "model", "attempts": 8},
        "cost": "calls",
        "cost_weight": 0.01,
        "iterations": 2,
    }
    return {**section, **search}


def test_a_language_model_proposes_and_its_failures_are_kept(tmp_path: Path) -> None:
    with serving(chat) as server:
        result, folder = searched(tmp_path, **with_server(server.url, tmp_path))
        asked = [body["messages"][-1]["content"] for body, _ in server.asked]
    assert result["best"][0]["workflow"] == "program()"
    assert result["test"][0]["accuracy"] == 1.0
    assert result["exact"] is None
    written = lines(folder / "trajectories.jsonl")
    rejected = [line for line in written if "rejected" in line]
    assert all(line["completion"] for line in rejected)
    edit = next(line for line in written if line.get("workflow") == "program()")
    assert (edit["proposer"], edit["edit_logp"]) == ("model", None)
    question = next(text for text in asked if text.startswith("You improve"))
    assert "generate()" in question
    assert "it answered '0', right is" in question
    assert '"revise" "(" review' in question


def test_an_endpoint_that_goes_down_ends_the_search_and_loses_nothing(tmp_path: Path) -> None:
    def dies(number: int, body: dict[str, Any]) -> Answer:
        return chat(number, body) if number < 3 else Answer({"error": "no credit"}, 401)

    with serving(dies) as server:
        section = with_server(server.url, tmp_path, concurrency=1)
        with pytest.raises(
            RelgradError, match=r"status 401: no credit; is `key` right\?. What was answered is kept in .*runs"
        ):
            searched(tmp_path, **section)
        journal = tmp_path / "runs" / "s" / "calls.jsonl"
        answered = [line["key"] for line in lines(journal) if "reply" in line]
        assert len(answered) == 3
        assert (tmp_path / "runs" / "s" / "tree.json").is_file()
    port = int(server.url.split(":")[2].split("/")[0])
    with serving(chat, port) as again:
        result, _ = searched(tmp_path, **section)
        assert result["best"][0]["workflow"] == "program()"
        kept = lines(journal)
        assert Counter(line["key"] for line in kept if "reply" in line).most_common()[0][1] == 1
        assert len(again.asked) == sum("reply" in line for line in kept) - 3


def test_a_proposer_without_replies_ends_the_search_and_is_asked_again(tmp_path: Path) -> None:
    away = True

    def busy(number: int, body: dict[str, Any]) -> Answer:
        proposing = body["messages"][-1]["content"].startswith("You improve")
        return Answer({"error": "busy"}, 503) if proposing and away else chat(number, body)

    with serving(busy) as server:
        section = with_server(server.url, tmp_path, proposer={"kind": "model", "attempts": 3}, test_repeats=0)
        first, _ = searched(tmp_path, **section)
        assert first["workflows"] == 1
        assert first["reasons"][0].startswith("no reply to a question for a better workflow: http")
        assert "status 503: busy" in first["reasons"][0]
        away, before = False, len(server.asked)
        again, _ = searched(tmp_path, **section)
        asked = [body["messages"][-1]["content"] for body, _ in server.asked[before:]]
    assert asked[0].startswith("You improve"), "what was answered is not asked again"
    assert not again["reasons"][0].startswith("no reply")
    assert again["spent"]["calls"] == before + len(asked)


def test_half_a_character_in_a_proposed_prompt_or_a_reply_ends_nothing(tmp_path: Path) -> None:
    def halves(number: int, body: dict[str, Any]) -> Answer:
        text = body["messages"][-1]["content"]
        if "You improve" in text:
            return says(r'workflow: generate("Think \ud83d now")')
        return says("answer: \ud83d" if "2 + 1" in text else "answer: 0")

    with serving(halves) as server:
        section = with_server(server.url, tmp_path, proposer={"kind": "model", "attempts": 2}, test_repeats=0)
        result, folder = searched(tmp_path, **section)
    assert result["workflows"] == 1
    rejected = [line["rejected"] for line in lines(folder / "trajectories.jsonl") if "rejected" in line]
    assert rejected[0] == "generate: the prompt has half a character, '\\ud83d', after 6 others"
    with pytest.raises(NoWorkflow, match="half a character"):
        parse(r'generate("Think \ud83d now")')


BAD = [Answer({}, 429, {"Retry-After": "0"}), Answer(b"<html>"), Answer({}, 503)]


@pytest.mark.parametrize("bad", BAD)
def test_calls_that_fail_leave_workflows_unscored(tmp_path: Path, bad: Answer) -> None:
    with serving(lambda number, body: bad if number else chat(number, body)) as server:
        section = with_server(server.url, tmp_path, proposer={"kind": "grammar"}, test_repeats=0, concurrency=1)
        result, folder = searched(tmp_path, **section, budget={"calls": 15})
    assert result["best"][0]["trials"] == 1
    executions = [one for line in lines(folder / "trajectories.jsonl") for one in line.get("executions", ())]
    assert {one["right"] is None for one in executions} == {True, False}
    assert all((one["right"] is None) == bool(one["failure"]) for one in executions)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("calls", [10, 500])
def test_a_search_of_which_every_call_fails_says_so_soon_and_goes_on_once_they_do_not(
    tmp_path: Path, bad: Answer, calls: int
) -> None:
    broken = True
    with serving(lambda number, body: bad if broken else chat(number, body)) as server:
        section = with_server(server.url, tmp_path, proposer={"kind": "grammar"}, iterations=12, test_repeats=0)
        with pytest.raises(
            RelgradError, match=rf"all of {min(calls, HOPELESS)} calls failed, the first with: http.*kept in"
        ):
            searched(tmp_path, **section, budget={"calls": calls})
        assert min(calls, HOPELESS) <= len(server.asked) <= min(calls, HOPELESS + 3), "those under way end"
        broken = False
        result, _ = searched(tmp_path, **section, budget={"calls": 600})
    assert result["best"][0]["trials"] > 0
    assert result["spent"]["calls"] == len(server.asked)


# ---------------------------------------------------------------------- the command line, the page, mistakes


def test_the_command_searches_exports_and_shows_a_page(tmp_path: Path) -> None:
    out = tmp_path / "best.json"
    path = recipe(tmp_path, budget={"calls": 60}, test_repeats=1)
    printed = relgrad("search", path, "--export", out, "search.budget.calls=70", "search.temperature=0.5")
    assert "70 calls" in printed
    assert "ended by budget: calls, 70" in printed
    assert "best - this" in printed
    step, facts = file.read(out)
    assert step.text in printed
    assert facts["backend"]["kind"] == "scripted"
    assert (facts["temperature"], facts["max_tokens"], facts["programs"]) == (0.5, 512, "arithmetic")
    assert "answer   " in relgrad("workflow", "run", out, "--problem", "sum-0")
    page = (tmp_path / "runs" / "s" / "search.html").read_text()
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])
    nodes = data["trees"][0]["nodes"]
    assert nodes[0]["workflow"] == "generate()"
    assert nodes[0]["executions"][0]["calls"][0]["operator"] == "generate"
    assert nodes[0]["history"]
    assert len(re.findall(r"'sha256-|&#39;sha256-", page)) == 2


def mistake(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["search", *map(str, arguments)], env={"COLUMNS": "400", "NO_COLOR": "1"})
    assert result.exit_code == 2, result.output
    return result.stderr


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"budget": {"calls": 0}}, "search.budget.calls: a budget of 0 or less allows nothing: give more, or leave this limit out"),
        ({"budget": {"cals": 5}}, "unknown key. Did you mean 'calls'?"),
        ({"start": ["solve()"]}, "unknown operator 'solve'"),
        ({"start": ["generate("]}, "no workflow"),
        ({"start": ["none.json"]}, "no workflow file 'none.json'"),
        ({"problems": {"kind": "file", "path": "p.jsonl"}}, "line 1 has no `answer`, so nothing could be scored"),
        ({"problems": {"kind": "file", "path": "q.jsonl"}}, "no file 'q.jsonl'"),
        ({"problems": {"kind": "none"}}, "problems: unknown kind 'none'. Known: noisy, file"),
        ({"proposer": {"kind": "none"}}, "search.proposer: unknown kind 'none'. Known: grammar, model"),
        ({"proposer": {"kind": "grammar", "operators": ["solve"]}}, "no 'solve'; there are generate"),
        ({"proposer": {"kind": "grammar", "operators": ["verify"]}}, "without generate or program there is no workflow"),
        ({"backend": {"kind": "none"}}, "backends: unknown kind 'none'"),
        ({"backend": {"kind": "endpoint", "url": "http://x", "model": "m"}}, "the back end knows no prices"),
        ({"backend": {"kind": "endpoint", "url": "http://x", "model": "m", "key": "sk-abcdefgh1234"}}, "looks like a secret"),
        ({"trials": {"first": 9, "most": 3}}, "trials.most=3 is less than trials.first=9"),
        ({"edit_prior": "none.json"}, "search.edit_prior: no file 'none.json'"),
        ({"edit_prior": "p.jsonl"}, "p.jsonl is no prior"),
        ({"edit_prior": "p.jsonl", "proposer": {"kind": "model"}}, "of edits of the grammar (received proposer 'model')"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_recipe_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, search: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.jsonl").write_text('{"question": "Q?"}\n')
    assert message in mistake(recipe(tmp_path, **search))
    assert not (tmp_path / "runs" / "s" / "result.json").exists()


def test_a_search_and_a_training_are_told_apart(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["run", "workflows-quick"], env={"COLUMNS": "400"})
    assert result.exit_code == 2
    assert "describes a search, and no training: run it with `relgrad search" in result.stderr
    assert "describes no search" in mistake("quick")
    (tmp_path / "runs" / "s" / "1-grpo").mkdir(parents=True)
    (tmp_path / "runs" / "s" / "1-grpo" / "recipe.yaml").write_text("x: 1\n")
    assert "holds a training run" in mistake(recipe(tmp_path))


def test_what_was_paid_is_deleted_only_for_a_search_that_can_begin(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "s"
    folder.mkdir(parents=True)
    (folder / "calls.jsonl").write_text("paid\n")
    missing = {"kind": "file", "path": str(tmp_path / "missing.jsonl")}
    assert "missing.jsonl" in mistake(recipe(tmp_path, problems=missing), "--fresh")
    assert "unknown kind" in mistake(recipe(tmp_path, proposer={"kind": "none"}), "--fresh")
    (folder / "1-grpo").mkdir()
    (folder / "1-grpo" / "recipe.yaml").write_text("x: 1\n")
    assert "holds a training run" in mistake(recipe(tmp_path), "--fresh")
    assert (folder / "calls.jsonl").read_text() == "paid\n"


@pytest.mark.parametrize("name", ["..", ".", "a/b", ""])
def test_a_name_is_of_a_folder_of_its_own(tmp_path: Path, name: str) -> None:
    path = recipe(tmp_path)
    assert "give a name without / and" in mistake(path, f"name='{name}'", "--fresh")
    assert not (tmp_path / "runs").exists()


def test_a_damaged_journal_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "s"
    folder.mkdir(parents=True)
    (folder / "calls.jsonl").write_text('{"key": "k"}\n')
    assert "calls.jsonl, line 1 is no call" in mistake(recipe(tmp_path))
    assert "calls" in relgrad("search", recipe(tmp_path, budget={"calls": 20}, test_repeats=0), "--fresh")


def test_only_workflows_that_are_the_same_in_every_trial_are_merged(tmp_path: Path) -> None:
    """At temperature 0 a server answers the same to the same words: an extract around a short answer changes nothing."""
    with serving(chat) as server:
        grammar = {"kind": "grammar", "operators": ["generate", "extract"], "prompts": ["plain"], "max_size": 2}
        section = with_server(server.url, tmp_path, proposer=grammar, test_repeats=0, iterations=9)
        result, folder = searched(tmp_path, **section)
    nodes = json.loads((folder / "tree.json").read_text())["trees"][0]["nodes"]
    assert [(node["workflow"], node["same_as"]) for node in nodes] == [("generate()", None), ("extract(generate())", 0)]
    assert result["reasons"] == ["every edit of every workflow was tried"]
    assert nodes[1]["trials"] == Repeats().most


# ---------------------------------------------------------------------- a prior learnt from earlier searches


def test_kinds_of_edits_are_what_they_add_and_take_away() -> None:
    def kind(before: str, after: str) -> str:
        return kind_of_edit(parse(before), parse(after))

    assert kind("generate()", "program()") == "+program -generate"
    assert kind("generate()", "ensemble(3 * generate())") == "+ensemble +generate+generate"
    assert kind("program()", "verify(program(), generate(careful))") == "+generate careful +verify"
    assert kind("verify(program(), generate())", "verify(generate(), program())") == "order"


def test_a_prior_weighs_edits_by_their_gains_and_leaves_a_share_as_it_was() -> None:
    generate, program, careful = (parse(text) for text in ("generate()", "program()", "generate(careful)"))
    prior = Prior({"sum": {"+program -generate": (SHARPNESS * math.log(3), 8)}, "": {}})
    weighted = prior.weighted(generate, {program: 0.25, careful: 0.25}, "sum")
    assert weighted[program] == pytest.approx(MIX * 0.25 + (1 - MIX) * 0.5 * 3 / 4)
    assert sum(weighted.values()) == pytest.approx(0.5)
    assert prior.weighted(generate, {program: 0.25, careful: 0.25}, "riddle") == {program: 0.25, careful: 0.25}


def test_a_single_lucky_edit_changes_the_prior_by_less_than_a_factor_of_two(tmp_path: Path) -> None:
    """The first workflow was wrong and its child right, once: a gain of 1, the largest there is. A hundred such are believed."""

    def factor(edits: int) -> float:
        first: dict[str, Any] = {"scope": "", "node": 0, "parent": None, "score": 0.0}
        child: dict[str, Any] = {
            "scope": "",
            "parent": 0,
            "score": 1.0,
            "types": ["sum"],
            "from": "generate()",
            "workflow": "program()",
        }
        rows = [first, *(child | {"node": 1 + number} for number in range(edits))]
        (tmp_path / "trajectories.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        gain, count = learn([tmp_path])["gains"]["sum"]["+program -generate"]
        assert count == edits
        return math.exp(gain / SHARPNESS)

    assert 1 < factor(1) < 2
    assert factor(100) > 1e6


def test_a_prior_is_learnt_from_searches_and_used_by_others(tmp_path: Path) -> None:
    """Sums want a program: after a search on sums, that edit of the first workflow is likelier than before."""
    problems = {"kind": "noisy", "count": 20, "types": ["sum"]}
    _, run = searched(tmp_path, problems=problems, budget={"calls": 400}, test_repeats=0)
    shown = relgrad("workflow", "prior", run, "--out", tmp_path / "prior.json")
    assert "+program -generate" in shown
    record = json.loads((tmp_path / "prior.json").read_text())
    assert record["gains"]["sum"] == record["gains"][""]
    assert record["edits"] == sum(count for _, count in record["gains"]["sum"].values())
    tree = Tree("", "mean", ("sum",))
    root = tree.add(Node(0, None, parse("generate()"), "", 0))
    space = Space()
    learned, plain = Grammar(space, read(tmp_path / "prior.json")), Grammar(space)
    drawn = {
        name: Counter(asyncio.run(proposer.propose(tree, root, seed))[0].step.text for seed in range(300))
        for name, proposer in (("learned", learned), ("plain", plain))
    }
    assert drawn["learned"]["program()"] > drawn["plain"]["program()"]
    settings = {
        "problems": problems,
        "edit_prior": str(tmp_path / "prior.json"),
        "budget": {"calls": 30},
        "test_repeats": 0,
    }
    searched(tmp_path, "with", **settings)
    (tmp_path / "prior.json").write_text(json.dumps(record | {"runs": []}))
    again = mistake(recipe(tmp_path, "with", **settings))
    assert "holds a search with another prior" in again


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"version": 9, "gains": {}}', "has version 9; 1 is read"),
        ('{"version": 1}', "is no prior (KeyError('gains'))"),
        ('{"version": 1, "gains": {"sum": {"+program": [NaN, 3]}}}', "a gain of nan"),
        ("[]", "is no prior"),
    ],
)
def test_a_damaged_prior_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "prior.json").write_text(text)
    with pytest.raises(RelgradError, match=re.escape(message)):
        read(tmp_path / "prior.json")


def test_a_prior_is_not_learnt_from_nothing(tmp_path: Path) -> None:
    with pytest.raises(RelgradError, match=r"holds no search: there is no trajectories\.jsonl"):
        learn([tmp_path])
    (tmp_path / "trajectories.jsonl").write_text("")
    with pytest.raises(RelgradError, match="no edit with a score"):
        learn([tmp_path])
    (tmp_path / "trajectories.jsonl").write_text('{"node": 0}\n')
    with pytest.raises(RelgradError, match=r"trajectories\.jsonl, line 1 is no edit \(KeyError\('scope'\)\)"):
        learn([tmp_path])
