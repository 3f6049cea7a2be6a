"""Writing in several steps: what is masked again, how much of it, by which law it is filled, and what is told of it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.core.randomness import Draws
from relgrad.core.types import Prompt
from relgrad.laws.categorical import Truncation
from relgrad.policies import fill_in
from relgrad.policies.fill_in.denoise import Denoise, denoise, highest
from relgrad.policies.fill_in.policy import FillInPolicy, pad
from relgrad.policies.fill_in.toy import make
from relgrad.text.vocabulary import Vocabulary
from relgrad.trajectories.film import Frames, cells, describe

MASK, PAD = 9, 10
KINDS = ("confidence", "critic", "random")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def settings(**chosen: object) -> Denoise:
    return Denoise.model_validate(chosen)


def start(*texts: str) -> tuple[Tensor, Tensor]:
    """Padded ids of texts of digits and of `#`, which is masked."""
    return pad([[MASK if c == "#" else int(c) for c in text] for text in texts], PAD)


class Fake:
    """A law that draws token `position % 9` with probability `sure[position]` and any other digit with the rest.

    `wrong` is its critic's opinion. Every call is recorded.
    """

    def __init__(self, sure: list[float], wrong: list[float] | None = None) -> None:
        self.sure_L, self.wrong_L = torch.tensor(sure), torch.tensor(wrong or [0.0] * len(sure))
        self.filled: list[list[tuple[int, int]]] = []

    def logits(self, ids_BL: Tensor, length_B: Tensor, row_M: Tensor, position_M: Tensor) -> Tensor:
        assert bool((position_M < length_B[row_M]).all()), "padding is never filled"
        assert ((ids_BL == MASK).nonzero() == torch.stack([row_M, position_M], 1)).all()
        self.filled.append(list(zip(row_M.tolist(), position_M.tolist(), strict=True)))
        prob_MV = ((1 - self.sure_L[position_M]) / 8)[:, None].expand(-1, 9).clone()
        prob_MV[torch.arange(len(position_M)), position_M % 9] = self.sure_L[position_M]
        return prob_MV.log()

    def wrong(self, ids_BL: Tensor, length_B: Tensor) -> Tensor:
        assert not bool((ids_BL == MASK).any()), "the critic reads a finished text"
        return self.wrong_L.expand(ids_BL.shape)


def frames_of(fake: Fake, chosen: Denoise, *texts: str, seed: int = 0) -> Frames:
    draws = Draws.of(generator(seed), len(texts))
    return denoise(*start(*texts), MASK, Truncation(), chosen, fake.logits, fake.wrong, draws)


def masked(frames: Frames) -> list[list[list[int]]]:
    """[frame][row] -> masked positions."""
    return [[row.nonzero()[:, 0].tolist() for row in ids_BL == MASK] for ids_BL in frames.ids_FBL]


# ---------------------------------------------------------------------- the schedule


def test_the_linear_schedule_by_hand() -> None:
    assert settings(steps=4, start_ratio=0.9, end_ratio=0.3).ratios == pytest.approx([0.7, 0.5, 0.3])
    assert settings(steps=1).ratios == ()
    assert settings(steps=3, schedule="custom", masking_ratios=[0.5, 0.25]).ratios == (0.5, 0.25)


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        (
            {"steps": 4, "schedule": "custom", "masking_ratios": [0.5]},
            "masking_ratios has 1 shares, but steps=4 needs 3",
        ),
        ({"steps": 2, "masking_ratios": [0.5]}, "needs schedule=custom"),
        ({"steps": 2, "schedule": "custom", "masking_ratios": [1.5]}, "every share must be in"),
        ({"steps": 0}, "greater than or equal to 1"),
        ({"remask": "worst"}, "'confidence', 'critic' or 'random'"),
        ({"randomness_strength": 1.1}, "less than or equal to 1"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(chosen: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        settings(**chosen)


@pytest.mark.parametrize("remask", KINDS)
def test_every_step_fills_its_share_and_leaves_what_was_given_alone(remask: str) -> None:
    texts = ("12##########", "#####", "3#4#5#6#")
    chosen = settings(steps=4, schedule="custom", masking_ratios=[0.8, 0.5, 0.0], remask=remask)
    fake = Fake([0.1 + 0.07 * i for i in range(12)], [0.5] * 12)
    frames = frames_of(fake, chosen, *texts)
    counts = [[len(row) for row in rows] for rows in masked(frames)]
    assert counts == [[10, 5, 4], [0, 0, 0], [8, 4, 3], [0, 0, 0], [5, 2, 2], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert [len(cells_) for cells_ in fake.filled] == [19, 15, 9], "nothing is masked before the last step: no pass"
    start_BL, length_B = start(*texts)
    given_BL = start_BL != MASK
    assert bool((frames.ids_FBL[:, given_BL] == start_BL[given_BL]).all()), "given text and padding"
    for row, length in enumerate(length_B.tolist()):
        assert bool((frames.ids_FBL[-1, row, :length] < MASK).all())


def test_a_step_changes_masked_positions_and_nothing_else() -> None:
    frames = frames_of(Fake([0.3] * 30), settings(steps=6), "#" * 30, "1" + "#" * 20)
    for before, after in itertools.pairwise(zip(frames.ids_FBL, frames.confidence_FBL, strict=True)):
        same_BL = (before[0] == after[0]) & (after[0] != MASK)
        assert bool((same_BL | (before[0] == MASK) | (after[0] == MASK)).all())
        kept_BL = (before[0] != MASK) & (after[0] != MASK)
        assert torch.equal(before[1][kept_BL].nan_to_num(-1), after[1][kept_BL].nan_to_num(-1)), (
            "and keeps its confidence"
        )


# ---------------------------------------------------------------------- what is masked again


def test_the_least_probable_tokens_are_masked_again() -> None:
    """Positions 1 and 4 are certain, so they stay; of the others the drawn token's own probability decides."""
    sure = [0.5, 1.0, 0.6, 0.9, 1.0, 0.3]
    chosen = settings(steps=2, end_ratio=0.5, randomness_strength=0)
    for seed in range(20):
        frames = frames_of(Fake(sure), chosen, "######", seed=seed)
        drawn = frames.ids_FBL[1, 0].tolist()
        probability = [p if token == i else (1 - p) / 8 for i, (p, token) in enumerate(zip(sure, drawn, strict=True))]
        assert frames.confidence_FBL[1, 0].tolist() == pytest.approx(probability, abs=1e-3)
        worst = sorted(sorted(range(6), key=lambda i: probability[i])[:3])
        assert masked(frames)[2][0] == worst


def test_what_the_critic_finds_most_likely_wrong_is_masked_again() -> None:
    fake = Fake([0.1] * 8, [0.9, 0.2, 0.99, 0.3, 0.8, 0.1, 1.0, 0.7])
    chosen = settings(steps=2, end_ratio=0.5, remask="critic", randomness_strength=0)
    assert masked(frames_of(fake, chosen, "#####1##"))[2][0] == [0, 2, 4, 6], "4 of 7, and position 5 is given"


def test_random_masking_again_is_uniform_whatever_the_confidence() -> None:
    fake = Fake([0.01, 0.99] * 4)
    chosen = settings(steps=2, end_ratio=0.25, remask="random", randomness_strength=0)
    frames = frames_of(fake, chosen, *["########"] * 2000)
    share_L = (frames.ids_FBL[2] == MASK).float().mean(0)
    assert share_L.tolist() == pytest.approx([0.25] * 8, abs=4 * (0.25 * 0.75 / 2000) ** 0.5)


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_chance_and_doubt_are_blended_by_randomness_strength(strength: float) -> None:
    """Recomputed from the random numbers of every text: filling first, then masking again."""
    wrong = [0.9, 0.2, 0.99, 0.3, 0.8, 0.1]
    chosen = settings(steps=2, end_ratio=0.5, remask="critic", randomness_strength=strength)
    frames = frames_of(Fake([0.5] * 6, wrong), chosen, *["######"] * 40, seed=3)
    uniform_BDT = Draws.of(generator(3), 40).rand(2, 6).tolist()
    for row in range(40):
        priority = [(1 - strength) * w + strength * u for w, u in zip(wrong, uniform_BDT[row][1], strict=True)]
        assert masked(frames)[2][row] == sorted(sorted(range(6), key=lambda i: -priority[i])[:3])


def test_every_step_draws_anew() -> None:
    chosen = settings(steps=3, schedule="custom", masking_ratios=[1.0, 1.0])
    frames = frames_of(Fake([0.5] * 10), chosen, *["##########"] * 400)
    first_BL, second_BL, third_BL = frames.ids_FBL[[1, 3, 5]]
    same = 0.5**2 + 8 * (0.5 / 8) ** 2
    for one_BL, other_BL in ((first_BL, second_BL), (second_BL, third_BL), (first_BL, third_BL)):
        found = (one_BL == other_BL).float().mean().item()
        assert found == pytest.approx(same, abs=4 * (same * (1 - same) / 4000) ** 0.5)


def test_of_equals_the_first_are_chosen_and_only_what_is_allowed() -> None:
    allowed_BL = torch.tensor([[True, False, True, True], [True, True, True, True]])
    chosen_BL = highest(torch.tensor([[-1.0, 9.0, -1.0, 2.0], [0.0] * 4]), allowed_BL, torch.tensor([2, 3]))
    assert chosen_BL.tolist() == [[True, False, False, True], [True, True, True, False]]


# ---------------------------------------------------------------------- the policy's own law


def toy(**chosen: object) -> FillInPolicy:
    policy = make(denoise=chosen)().policy
    assert isinstance(policy, FillInPolicy)
    return policy


@pytest.mark.parametrize("options", [{}, {"temperature": 0.6, "top_p": 0.9}, {"top_k": 2, "attention_type": "causal"}])
def test_one_step_is_single_step_sampling(options: dict[str, object]) -> None:
    made = make(denoise={"steps": 1}, **options)()
    films = made.policy.film(made.prompts, 5, generator(7))  # type: ignore[attr-defined]
    rollouts = made.policy.sample(made.prompts, 5, generator(7))
    assert [film["final"] for film in films] == [output.text for output in rollouts.outputs]
    told = [[c for c in film["frames"][-1]["confidence"] if c is not None] for film in films]
    drawn = [logp[use].exp().tolist() for logp, use in zip(rollouts.behaviour_logp_BT, rollouts.mask_BT, strict=True)]
    assert len({film["final"] for film in films}) > 3
    for row, other in zip(told, drawn, strict=True):
        assert row == pytest.approx(other, abs=6e-3)


def test_later_steps_draw_from_the_law_at_the_text_as_it_stands() -> None:
    """Every fill's probability is that of single-step scoring of the masked frame before it."""
    policy = toy(steps=5)
    checked = 0
    for film in policy.film([Prompt("b█a█bca█")], 6, generator(1)):
        for before, after in itertools.pairwise(film["frames"]):
            if not before["masked"]:
                continue
            ids = policy.vocabulary.encode(before["text"])
            logits_TV = policy.model.logits(policy.model.hidden(torch.tensor([ids]))[0, before["masked"]])
            logp_TV = logits_TV[:, : policy.vocabulary.base].log_softmax(-1)
            drawn_T = torch.tensor([policy.vocabulary.encode(after["text"])[i] for i in before["masked"]])
            wanted = logp_TV.gather(1, drawn_T[:, None])[:, 0].exp().tolist()
            assert [after["confidence"][i] for i in before["masked"]] == pytest.approx(wanted, abs=6e-3)
            checked += 1
    assert checked >= 18


@pytest.mark.parametrize("remask", ["confidence", "random"])
def test_the_generator_decides_everything(remask: str) -> None:
    policy = toy(steps=4, remask=remask)
    first, again, other = (
        [film["frames"] for film in policy.film([Prompt("█" * 8)], 6, generator(seed))] for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_a_row_does_not_depend_on_its_company() -> None:
    policy = toy(steps=4)
    one, two = Prompt("b█a█b█a"), Prompt("█a██")
    others = [Prompt("abcabca█"), Prompt("c██"), Prompt("ab█cc")]
    alone = policy.film([one], 1, generator())[0]["frames"]
    for company in ([], others[:1], others, [two]):
        assert policy.film([one, *company], 1, generator())[0]["frames"] == alone
    second = Draws.of(generator(), 5).part(1, 1)
    assert policy.film([one, two, *others], 1, generator())[1]["frames"] == policy.film([two], 1, second)[0]["frames"]


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    path = tmp_path / "letters.txt"
    path.write_text("abcdef\n" * 40, encoding="utf-8")
    return path


def built(text: Path, **options: object) -> FillInPolicy:
    sizes = {"block_size": 16, "n_layer": 1, "n_head": 2, "n_embd": 16}
    return fill_in.build(fill_in.Settings.model_validate({"text": str(text), **sizes, **options}), seed=0)


def test_the_policys_critic_reads_the_finished_text(letters: Path) -> None:
    policy = built(letters, critic_weight=0.5, denoise={"steps": 3, "remask": "critic", "randomness_strength": 0})
    torch.nn.init.normal_(policy.model.critic_head.weight, generator=generator())
    for film in policy.film([Prompt("a█c███\nab████"), Prompt("█d███f")], 3, generator(5)):
        finished, again = film["frames"][1], film["frames"][2]
        ids = torch.tensor([policy.vocabulary.encode(finished["text"])])
        wrong = policy.model.critic(policy.model.hidden(ids))[0].tolist()
        ranked = sorted(finished["filled"], key=lambda i: -wrong[i])
        assert again["masked"] == sorted(ranked[: len(again["masked"])])
        assert 0 < len(again["masked"]) < len(ranked)


def test_a_critic_that_is_not_there_is_an_error(letters: Path) -> None:
    with pytest.raises(RelgradError, match=r"remask=critic, but this network has no critic head.*critic_weight"):
        built(letters, denoise={"remask": "critic"}).film([Prompt("a█")], 1, generator())


# ---------------------------------------------------------------------- what is told


def test_frames_tell_what_happened() -> None:
    film = toy(steps=3, schedule="custom", masking_ratios=[0.5, 0.5]).film([Prompt("ab██c")], 1, generator())[0]
    frames = film["frames"]
    assert film["prompt"] == frames[0]["text"] == "ab██c"
    assert film["final"] == frames[-1]["text"]
    assert film["seconds"] > 0
    assert [frame["step"] for frame in frames] == [0, 1, 1, 2, 2, 3]
    for frame in frames:
        assert [i for i, c in enumerate(frame["text"]) if c == "█"] == frame["masked"]
        assert [i for i, p in enumerate(frame["confidence"]) if p is None] == sorted({0, 1, 4, *frame["masked"]})
        assert "cells" not in frame
    assert [len(frame["masked"]) for frame in frames] == [2, 0, 1, 0, 1, 0]
    for before, after in itertools.pairwise(frames):
        assert after["filled"] == (before["masked"] if not after["masked"] else [])


def test_bytes_of_one_character_are_shown_together() -> None:
    vocabulary = Vocabulary("byte")
    ids = [*vocabulary.encode("aé€"), vocabulary.mask_id, *vocabulary.encode("z")]
    assert cells(ids, vocabulary.decode) == ["a", "", "é", "", "", "€", "█", "z"]
    frames = Frames(torch.tensor([[ids]]), torch.full((1, 1, len(ids)), torch.nan))
    (film,) = describe(frames, ["p"], torch.tensor([len(ids)]), vocabulary.mask_id, vocabulary.decode)
    assert film["frames"][0]["text"] == "aé€█z"
    assert film["frames"][0]["masked"] == [6]
    assert film["frames"][0]["cells"][6] == "█"


def test_a_broken_character_is_shown_and_nothing_after_it_is_lost() -> None:
    vocabulary = Vocabulary("byte")
    shown = cells([0xE2, 0x82, *b"ab", 0xFF, 0xFF, 0xFF, 0xFF, *b"c", 0xC3], vocabulary.decode)
    assert len(shown) == 10
    assert "".join(shown).replace("\N{REPLACEMENT CHARACTER}", "") == "abc"
    assert shown[-1] == "\N{REPLACEMENT CHARACTER}"


def test_words_of_a_tokenizer_keep_their_spaces() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"▁the": 0, "▁cat": 1, "s": 2, "[UNK]": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    vocabulary = Vocabulary("tokenizer", tokenizer=tokenizer.to_str())
    ids = [0, 1, 2, 1, vocabulary.mask_id, 0]
    assert cells(ids, vocabulary.decode) == ["the", " cat", "s", " cat", "█", "the"]
    assert "".join(cells(ids, vocabulary.decode)) == vocabulary.decode(ids)
