"""Where a flow policy comes from and goes to: checkpoints, symbols, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from enumerated import move, seeded
from flow_policies import fresh, scored, spread
from relgrad.core.errors import RelgradError
from relgrad.core.settings import Component, settings_of
from relgrad.core.types import Example, Prompt
from relgrad.networks.fsdfm.network import DiT
from relgrad.policies import flow
from relgrad.policies.flow.settings import Lora, Settings
from relgrad.policies.flow.symbols import make_symbols
from relgrad.trajectories.states import unpack_states

FROM_FILE = {"symbols": "ascii", "max_completion_length": 6, "sampling_steps": 4, "device": "cpu"}

# ---------------------------------------------------------------------- checkpoints


def apple_file(folder: Path, model: DiT) -> Path:
    """A file as Apple's trainer writes it."""
    width = model.config.hidden // model.config.heads
    rotary = {"rotary_emb.inv_freq": 1.0 / (10_000.0 ** (torch.arange(0, width, 2).float() / width))}
    torch.save({"model": {**model.state_dict(), **rotary}, "step": 7}, folder / "checkpoint.pth")
    return folder / "checkpoint.pth"


def test_a_checkpoint_file_is_taken_with_its_own_scheduler(tmp_path: Path) -> None:
    policy = spread(flow.build(fresh(), seed=0))
    file = apple_file(tmp_path, policy.model)
    asked = {"model": str(file), "symbols": "ascii", "max_completion_length": 6, "sampling_steps": 4, "device": "cpu"}
    taken = flow.build(Settings(**asked), seed=5)
    rollouts = policy.sample([Prompt("ab")], 4, seeded(0))
    torch.testing.assert_close(scored(taken, rollouts), scored(policy, rollouts))
    with pytest.raises(
        RelgradError, match="trained with the scheduler polynomial with exponent 1, but the recipe says"
    ):
        flow.build(Settings(**asked, exponent=2), seed=0)
    beside = {"flow": {"scheduler_type": "polynomial", "exponent": 2.0, "source_distribution": "uniform"}}
    (tmp_path / "config.yaml").write_text(json.dumps(beside), encoding="utf-8")
    assert flow.build(Settings(**asked), seed=0).scheduler.exponent == 2
    with pytest.raises(RelgradError, match="exponent 2, but the recipe says polynomial with exponent 1"):
        flow.build(Settings(**asked, exponent=1), seed=0)
    with pytest.raises(RelgradError, match="trained from the source 'uniform', but the recipe says source: mask"):
        flow.build(Settings(**asked, source="mask"), seed=0)


def test_a_later_stage_goes_on_with_what_the_folder_says(tmp_path: Path) -> None:
    policy = spread(flow.build(fresh(source="mask", scheduler="cosine"), seed=0))
    policy.save(tmp_path / "full")
    plain = Settings(model=str(tmp_path / "full"), max_completion_length=6, sampling_steps=4, device="cpu")
    rollouts = policy.sample([Prompt("ab")], 4, seeded(0))
    for settings, start in ((plain, None), (fresh(), tmp_path / "full")):
        again = flow.build(settings, seed=3, start=start)
        assert (again.engine.law, again.scheduler) == (policy.engine.law, policy.scheduler)
        torch.testing.assert_close(scored(again, rollouts), scored(policy, rollouts))


def test_adapters_are_saved_alone_and_find_what_is_under_them(tmp_path: Path) -> None:
    spread(flow.build(fresh(), seed=0)).save(tmp_path / "full")
    lora = fresh(lora=Lora(r=2))
    adapted = flow.build(lora, seed=0, start=tmp_path / "full")
    move(adapted)
    adapted.save(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    rollouts = adapted.sample([Prompt("ab")], 4, seeded(0))
    again = flow.build(lora, seed=9, start=tmp_path / "adapter")
    torch.testing.assert_close(scored(again, rollouts), scored(adapted, rollouts))
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("full", "adapter"):
        (tmp_path / name).rename(moved / name)
    again = flow.build(lora, seed=9, start=moved / "adapter")
    torch.testing.assert_close(scored(again, rollouts), scored(adapted, rollouts))
    (moved / "full").rename(tmp_path / "elsewhere")
    with pytest.raises(
        RelgradError, match=r"adapter: the network under this adapter is gone: there is no .*moved/full"
    ):
        flow.build(lora, seed=9, start=moved / "adapter")
    (tmp_path / "elsewhere").rename(moved / "full")
    tmp_path = moved
    with pytest.raises(RelgradError, match="is an adapter: add the lora section"):
        flow.build(fresh(), seed=0, start=tmp_path / "adapter")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exponent": 2}, "trained with the scheduler polynomial with exponent 1, but the recipe says .* exponent 2"),
        ({"scheduler": "cosine"}, "the recipe says cosine"),
        ({"source": "mask"}, "trained from the source 'uniform'"),
        ({"symbols": "byte"}, "the vocabulary of the recipe .* was made with another vocabulary"),
        ({"network": {"hidden": 32}}, r"other sizes than policy.network says: hidden=32 \(there 16\)"),
    ],
)
def test_a_recipe_that_contradicts_its_checkpoint_is_refused(tmp_path: Path, options: dict, message: str) -> None:
    flow.build(fresh(), seed=0).save(tmp_path)
    with pytest.raises(RelgradError, match=message):
        flow.build(fresh(**options), seed=0, start=tmp_path)


def test_weights_of_another_policy_are_not_loaded(tmp_path: Path) -> None:
    policy = flow.build(fresh(), seed=0)
    for name, options in {
        "byte": {"symbols": "byte"},
        "squared": {"exponent": 2},
        "wide": {"network": {"hidden": 32}},
    }.items():
        flow.build(fresh(**options), seed=0).save(tmp_path / name)
    with pytest.raises(RelgradError, match="another vocabulary"):
        policy.load(tmp_path / "byte")
    with pytest.raises(RelgradError, match=r"saved by a flow policy with exponent=2.0 \(here 1.0\)"):
        policy.load(tmp_path / "squared")
    with pytest.raises(RelgradError, match="weights of another network"):
        policy.load(tmp_path / "wide")
    flow.build(fresh(lora=Lora(r=2)), seed=0).save(tmp_path / "adapter")
    with pytest.raises(RelgradError, match="an adapter needs the lora section"):
        policy.load(tmp_path / "adapter")
    policy.save(tmp_path / "plain")
    with pytest.raises(RelgradError, match="saved by a policy with ema_decay: 0"):
        flow.build(fresh(ema_decay=0.9), seed=0).load(tmp_path / "plain")


def test_adapters_on_a_file_find_it_from_another_folder_and_where_the_recipe_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    file = apple_file(Path("."), spread(flow.build(fresh(), seed=0)).model)
    settings = Settings(**FROM_FILE, model=str(file), lora=Lora(r=2))
    adapted = flow.build(settings, seed=0)
    move(adapted)
    adapted.save(Path("runs/adapter"))
    rollouts = adapted.sample([Prompt("ab")], 4, seeded(0))
    assert str(tmp_path) not in (tmp_path / "runs/adapter/flow.json").read_text()
    monkeypatch.chdir(tmp_path / "there")
    again = flow.build(settings, seed=0, start=tmp_path / "runs/adapter")
    torch.testing.assert_close(scored(again, rollouts), scored(adapted, rollouts))
    (tmp_path / file).rename("moved.pth")
    with pytest.raises(RelgradError, match=r"is gone: there is no .*say where it is now: policy\.model=FILE"):
        flow.build(settings, seed=0, start=tmp_path / "runs/adapter")
    again = flow.build(settings.model_copy(update={"model": "moved.pth"}), seed=0, start=tmp_path / "runs/adapter")
    torch.testing.assert_close(scored(again, rollouts), scored(adapted, rollouts))


def test_adapters_on_a_new_network_find_it_again_under_another_seed(tmp_path: Path) -> None:
    lora = fresh(lora=Lora(r=2))
    adapted = flow.build(lora, seed=3)
    move(adapted)
    adapted.save(tmp_path)
    rollouts = adapted.sample([Prompt("ab")], 4, seeded(0))
    torch.testing.assert_close(scored(flow.build(lora, seed=8, start=tmp_path), rollouts), scored(adapted, rollouts))


def test_a_student_writes_in_steps_that_it_was_told(tmp_path: Path) -> None:
    distilled = fresh(few_step={"finest": 8}, ema_decay=0.9)
    flow.build(distilled, seed=0).save(tmp_path)
    plain = {"model": str(tmp_path), "max_completion_length": 6, "device": "cpu"}
    student = flow.build(Settings(**plain, sampling_steps=8, evaluation_steps=2), seed=0)
    assert student.model.config.step_conditioned
    for steps in ({"sampling_steps": 6}, {"sampling_steps": 16}, {"sampling_steps": 4, "evaluation_steps": 3}):
        with pytest.raises(RelgradError, match="this student takes a power of two up to 8"):
            flow.build(Settings(**plain, **steps), seed=0)
    with pytest.raises(RelgradError, match=r"few-step student, .*\(add policy\.few_step"):
        student.supervised_loss([Example(Prompt("a"), "b")], seeded(0))
    student.save(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "flow.json").read_text())["finest"] == 8


def test_a_teacher_that_needs_a_uniform_source_is_refused_for_a_mask(tmp_path: Path) -> None:
    flow.build(fresh(source="mask"), seed=0).save(tmp_path)
    with pytest.raises(RelgradError, match="needs a uniform source, and this network's is the mask"):
        flow.build(fresh(few_step={"finest": 8}, ema_decay=0.9), seed=0, start=tmp_path)
    flow.build(fresh(few_step={"finest": 8, "teacher": "half_steps"}, ema_decay=0.9), seed=0, start=tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flow: [1, 2", r"config.yaml: cannot be read: while parsing"),
        ("- 1", "config.yaml: not a configuration of a flow network, but list"),
        ("flow: {exponent: 2}", "config.yaml: no scheduler_type in the configuration; it has flow"),
        ("flow: {scheduler_type: cubic}", "config.yaml: scheduler 'cubic': allowed are polynomial, cosine"),
    ],
)
def test_a_configuration_beside_a_checkpoint_that_cannot_be_read_is_named(
    tmp_path: Path, text: str, message: str
) -> None:
    file = apple_file(tmp_path, flow.build(fresh(), seed=0).model)
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(RelgradError, match=message):
        flow.build(Settings(model=str(file), symbols="ascii", max_completion_length=6, device="cpu"), seed=0)


def test_a_damaged_folder_is_named(tmp_path: Path) -> None:
    flow.build(fresh(), seed=0).save(tmp_path)
    for text in ('{"scheduler_type": ', "{}", '{"end_id": "x"}'):
        (tmp_path / "flow.json").write_text(text, encoding="utf-8")
        with pytest.raises(RelgradError, match=r"flow\.json: cannot be read"):
            flow.build(fresh(), seed=0, start=tmp_path)


# ---------------------------------------------------------------------- symbols


def tokenizer_file(folder: Path, special: Sequence[str]) -> Path:
    """A byte-pair tokenizer.json of a few entries, with these special ones at the end."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.train_from_iterator(["abc abd"], trainers.BpeTrainer(vocab_size=12, special_tokens=[]))
    made.add_special_tokens(list(special))
    made.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def test_a_gpt2_like_tokenizer_ends_with_its_own_entry_and_a_mask_is_one_row_more(tmp_path: Path) -> None:
    file = tokenizer_file(tmp_path, ["<|endoftext|>"])
    for masked in (False, True):
        symbols = make_symbols(str(file), "", None, masked=masked)
        base = symbols.vocabulary.base
        assert (symbols.end_id, symbols.tokens, symbols.size) == (base - 1, base, base + masked)
        assert symbols.mask_id == (base if masked else None)
        assert symbols.drawable_K.tolist() == list(range(base))
    ids = symbols.encode(Prompt("abc"))
    assert symbols.text([*ids, symbols.end_id, *ids]) == ("abc", tuple(ids), True)


def test_other_special_entries_are_never_written(tmp_path: Path) -> None:
    file = tokenizer_file(tmp_path, ["<pad>", "<eos>"])
    with pytest.raises(
        RelgradError, match=r"which of the tokenizer's special entries ends a text\? It has <pad>, <eos>"
    ):
        make_symbols(str(file), "", None, masked=False)
    symbols = make_symbols(str(file), "", "<eos>", masked=False)
    base = symbols.vocabulary.base
    assert symbols.drawable_K.tolist() == [*range(base - 2), base - 1]
    settings = fresh(symbols=str(file), end_token="<eos>")
    policy = spread(flow.build(settings, seed=0))
    rollouts = policy.sample([Prompt("abc")], 50, seeded(0))
    states_BTE = unpack_states(rollouts.trace, torch.arange(50))
    assert base - 2 not in states_BTE
    assert base - 1 in states_BTE
    with pytest.raises(RelgradError, match="end_token='<eos>' is for tokenizers"):
        make_symbols("ascii", "", "<eos>", masked=False)


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt("x" * 30, id=3), "prompt 3 has 30 tokens and leaves 0 editable positions of the network's 30"),
        (Prompt("x" * 26), "leaves 4 editable positions of the network's 30, but policy.max_completion_length is 6"),
        (Prompt("λ", id=4), "prompt 4: 1 characters are not in the vocabulary"),
        (Prompt("a█", id=5), "prompt 5 holds █"),
        (Prompt([{"role": "user", "content": "hello"}], id=6), "prompt 6 is a chat"),
    ],
)
def test_bad_prompts_say_what_is_wrong(prompt: Prompt, message: str) -> None:
    with pytest.raises(RelgradError, match=message):
        flow.build(fresh(), seed=0).sample([prompt], 2, seeded(0))


def test_an_answer_may_be_longer_than_what_is_sampled_but_not_than_the_network() -> None:
    policy = flow.build(fresh(), seed=0)
    assert policy.supervised_loss([Example(Prompt("a"), "x" * 7)], seeded(0)).targets == 7
    room = policy.model.config.length
    with pytest.raises(
        RelgradError, match=rf"prompt 0 has 1 tokens and its answer {room}, more than the network's {room}"
    ):
        policy.supervised_loss([Example(Prompt("a"), "x" * room)], seeded(0))
    with pytest.raises(RelgradError, match="the answer to prompt 2: 1 characters"):
        flow.build(fresh(), seed=0).supervised_loss([Example(Prompt("a", id=2), "λ")], seeded(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling_steps": 0}, r"sampling_steps: Input should be greater than or equal to 1 \(received 0\)"),
        ({"evaluation_steps": 0}, "evaluation_steps: Input should be greater than or equal to 1"),
        ({"max_completion_length": 0}, "max_completion_length: Input should be greater than or equal to 1"),
        ({"temperature": 0}, "temperature: Input should be greater than 0"),
        ({"exponent": 0.5}, "exponent: Input should be greater than or equal to 1"),
        ({"sampling_steps": 4, "train_steps": 5}, "train_steps=5: a trajectory has only sampling_steps=4"),
        ({"sampling_steps": 4, "branch_steps": 5}, "branch_steps=5: a trajectory has only sampling_steps=4"),
        ({"train_steps": 2, "branch_steps": 1}, "keep one"),
        ({"few_step": {"finest": 16}, "sampling_steps": 8}, "set ema_decay"),
        (
            {"few_step": {"finest": 16}, "sampling_steps": 12, "ema_decay": 0.9},
            "steps=12: this student takes a power of two",
        ),
        (
            {"few_step": {"finest": 16}, "sampling_steps": 8, "ema_decay": 0.9, "source": "mask"},
            "few_step.teacher='rk4' needs a uniform source",
        ),
        ({"scheduler": "cosine", "exponent": 2}, "exponent=2 is the polynomial's"),
        ({"kernel": "euler"}, "kernel: Input should be 'mixture', 'rate' or 'cumulative'"),
    ],
)
def test_bad_settings_are_refused_where_the_recipe_is_read(options: dict, message: str) -> None:
    component = Component(kind="flow", **options)
    with pytest.raises(RelgradError, match=message):
        settings_of(component, Settings, "policy")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"model": "nowhere"},
            "'nowhere' is neither a size .* nor a file or folder .*DFM_checkpoint.pth of huggingface",
        ),
        ({"network": {"hidden": 15}}, "every head needs the same, even number"),
        ({"lora": Lora(target_modules=("absent",))}, "lora targets"),
    ],
)
def test_a_network_that_cannot_be_had_says_so(options: dict, message: str) -> None:
    with pytest.raises(RelgradError, match=message):
        flow.build(fresh(**options), seed=0)


def test_a_checkpoint_with_another_vocabulary_is_refused(tmp_path: Path) -> None:
    file = apple_file(tmp_path, flow.build(fresh(), seed=0).model)
    settings = Settings(model=str(file), symbols="byte", max_completion_length=6, device="cpu")
    with pytest.raises(RelgradError, match="a network with 97 embeddings, but the vocabulary of this recipe has 257"):
        flow.build(settings, seed=0)
    settings = Settings(model=str(file), symbols="ascii", source="mask", max_completion_length=6, device="cpu")
    with pytest.raises(
        RelgradError, match=r"97 embeddings, but the vocabulary of this recipe has 98.*set source: uniform"
    ):
        flow.build(settings, seed=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RelgradError, match=r"no flow.json; give the folder of a flow policy"):
        flow.build(Settings(model=str(tmp_path / "empty"), device="cpu"), seed=0)
