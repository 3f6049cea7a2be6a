"""What was hidden, and which places are right: told in samples, evaluations and films of fill-in, and in no others."""

from __future__ import annotations

from typing import Any

import fill_prompts
from relgrad.core.randomness import generator
from relgrad.core.types import Output, Prompt
from relgrad.evaluation.held_out import evaluate
from relgrad.objectives.losses import PolicyLoss
from relgrad.policies.fill_in.truth import beside_truth, hidden_cells
from relgrad.rewards.combine import NamedReward, RewardSet
from relgrad.text.vocabulary import Vocabulary
from relgrad.training.grpo import Grpo, GrpoSettings

PROMPT = fill_prompts.prompt("abcdab", (1, 3, 4))
REWARDS = RewardSet([NamedReward("right", fill_prompts.right)], 60)


def output(text: str) -> Output:
    return Output(text, tuple(fill_prompts.VOCABULARY.encode(text)))


def test_the_holes_are_places_of_the_text_with_what_was_hidden_there():
    beside = beside_truth(PROMPT, output("abcbdb"), fill_prompts.VOCABULARY)
    assert beside == {"truth": "abcdab", "holes": [[1, 2, "b", True], [3, 4, "d", False], [4, 5, "a", False]]}


def test_without_the_truth_nothing_is_told():
    asked = Prompt(PROMPT.content, {}, 0)
    assert beside_truth(asked, output("abcbdb"), fill_prompts.VOCABULARY) == {}
    assert beside_truth(PROMPT, Output("abc", (0, 1, 2)), fill_prompts.VOCABULARY) == {}, "of another length"


def test_a_character_of_several_ids_is_a_place_of_its_last_one():
    vocabulary = Vocabulary("byte")
    truth, written = (vocabulary.encode(text) for text in ("a\N{EURO SIGN}c", "a\N{EURO SIGN}d"))
    masked = [truth[0], *[vocabulary.mask_id] * 4]
    prompt = Prompt("", {"masked_ids": masked, "truth_ids": truth}, 0)
    beside = beside_truth(prompt, Output("a\N{EURO SIGN}d", tuple(written)), vocabulary)
    euro = [[1, 1, "", True], [1, 1, "", True], [1, 2, "\N{EURO SIGN}", True]]
    assert beside["holes"] == [*euro, [2, 3, "c", False]]


def check(sample: dict[str, Any]) -> None:
    """The completion with the hidden text in its holes is the truth, and what is right is what is equal to it."""
    text, done = "", 0
    for first, end, hidden, right in sample["holes"]:
        assert right == (sample["completion"][first:end] == hidden)
        text, done = text + sample["completion"][done:first] + hidden, end
    assert text + sample["completion"][done:] == sample["truth"]


def test_training_samples_stand_beside_the_truth():
    loop = Grpo(
        fill_prompts.policy(),
        fill_prompts.PROMPTS,
        REWARDS,
        PolicyLoss(),
        GrpoSettings(num_prompts=5, num_generations=4),
    )
    loop.update()
    assert loop.batch is not None
    assert len(loop.batch.samples) == 20
    for sample in loop.batch.samples:
        check(sample)
        right = [hole[3] for hole in sample["holes"]]
        assert sum(right) / len(right) == sample["reward"]


def test_samples_of_evaluations_do_too():
    policy = fill_prompts.policy()
    evaluation = evaluate(policy, fill_prompts.PROMPTS, REWARDS, num_generations=2, seed=1)
    for sample in evaluation.to_record(0, "test")["samples"]:
        check(sample)


def test_a_film_knows_what_was_hidden():
    policy = fill_prompts.policy(denoise={"steps": 2})
    known, unknown = policy.film([PROMPT, Prompt("ab█", id=1)], 1, generator(0))
    assert known["hidden"] == [(1, "b"), (3, "d"), (4, "a")] == hidden_cells(PROMPT, policy.vocabulary)
    assert "hidden" not in unknown
