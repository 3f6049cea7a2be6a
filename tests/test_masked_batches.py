"""Batch files of the original trainer as a training source, and a policy written back as its checkpoint."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from commands import relgrad
from relgrad.core.errors import RelgradError
from relgrad.core.types import Example
from relgrad.networks.diffusion_gpt.network import GPT, GPTConfig
from relgrad.networks.diffusion_gpt.original_batches import translate_labels
from relgrad.networks.diffusion_gpt.original_export import save_checkpoint
from relgrad.networks.diffusion_gpt.original_files import load_checkpoint
from relgrad.policies import fill_in
from relgrad.runs.use import export
from relgrad.tasks import masked_batches
from relgrad.text.vocabulary import Vocabulary
from test_original_files import BASE, GENERATOR, MASK, PAD, SIZES, TEXT, Network, same_logits, some_ids

LETTERS = Vocabulary.of_text(TEXT)


def rows(*texts: str, width: int = 10) -> tuple[Tensor, Tensor]:
    """(ids, labels) of texts in which an upper-case letter stands for itself, masked, and "*" for a mask that is not asked for."""
    ids, labels = torch.full((len(texts), width), PAD), torch.full((len(texts), width), -100)
    for number, text in enumerate(texts):
        for position, sign in enumerate(text):
            hidden = sign.isupper() or sign == "*"
            ids[number, position] = MASK if hidden else LETTERS.encode(sign)[0]
            if sign.isupper():
                labels[number, position] = LETTERS.encode(sign.lower())[0]
    return ids, labels


def write(path: Path, *texts: str, strategy: str = "sticky", **tensors: Tensor) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ids, labels = rows(*texts)
    metadata = {"stage_info": [{"type": strategy}] * len(texts)}
    torch.save({"tensors": tensors or {"x": ids, "y": labels}, "metadata": metadata}, path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The original's folder of a dataset: its vocabulary, two files to train on and one to judge by."""
    folder = tmp_path / "data" / "plays"
    write(folder / "queue" / "train" / "2-000001-2.pt", "hAj bad!", "abc", strategy="span")
    write(folder / "queue" / "train" / "1-000000-2.pt", "A bad cab!", "fAdE\nba")
    write(folder / "queue" / "train" / ".tmp-3-000002.pt", "*")
    write(folder / "queue" / "val" / "1-000000-4.pt", "gigA", "hidE", "badGE", "Cab")
    (folder / "meta.pkl").write_bytes(pickle.dumps(GENERATOR))
    return folder


def test_the_samples_of_the_files_in_order(data: Path):
    task = masked_batches.load(masked_batches.Settings(path=data, held_out_size=3), seed=0)
    assert [p.columns["truth"] for p in task.train] == ["a bad cab!", "fade\nba", "haj bad!"], (
        "what hides nothing is left out"
    )
    assert [p.content for p in task.train] == ["█ bad cab!", "f█d█\nba", "h█j bad!"]
    first, second, third = task.train
    assert (second.columns["width"], len(second.columns["masked_ids"]), second.columns["mask_ratio"]) == (10, 7, 2 / 7)
    assert second.columns["label_ids"] == [-100, LETTERS.encode("a")[0], -100, LETTERS.encode("e")[0], -100, -100, -100]
    assert (first.columns["strategy"], third.columns["strategy"], third.id) == ("sticky", "span", 2)
    assert first.columns["vocabulary"] == LETTERS.fingerprint
    assert [p.columns["truth"] for p in task.validation] == ["giga", "hide", "badge"]
    assert [p.columns["truth"] for p in task.test] == ["cab"]
    assert task.train.in_order
    assert len(list(data.rglob("*.pt"))) == 4, "reading deletes nothing"


def test_a_folder_and_a_file_of_batches(data: Path, tmp_path: Path):
    file = write(tmp_path / "some" / "b.pt", "A bad cab!")
    settings = masked_batches.Settings(path=file, meta=data / "meta.pkl")
    task = masked_batches.load(settings, seed=0)
    assert (len(task.train), task.validation, task.own_test) == (1, [], None)
    again = masked_batches.load(settings.model_copy(update={"path": file.parent}), seed=0)
    assert again.train[0] == task.train[0]
    assert (
        masked_batches.load(masked_batches.Settings(path=data / "queue" / "train"), seed=0).train[2].content
        == "h█j bad!"
    )


def test_what_is_no_source_of_masked_text(data: Path, tmp_path: Path):
    def message(**settings: Any) -> str:
        with pytest.raises(RelgradError) as refusal:
            masked_batches.load(masked_batches.Settings.model_validate(settings), seed=0)
        return str(refusal.value)

    assert "no meta.pkl in it or above" in message(path=tmp_path)
    assert "no batch files: neither a .pt file, nor a folder" in message(path=tmp_path, meta=data / "meta.pkl")
    hidden = write(tmp_path / "hidden.pt", "ab*A")
    assert "hidden.pt: sample 0 has a mask at position 2 and no label there" in message(
        path=hidden, meta=data / "meta.pkl"
    )
    judged = write(tmp_path / "judged.pt", input_ids=rows("abc")[0], targets=torch.tensor([0.5]))
    assert "judged.pt: batches of a judge, not of masked text" in message(path=judged, meta=data / "meta.pkl")


def test_a_policy_learns_from_them(data: Path):
    settings = fill_in.Settings(text=str(data / "text.txt"), block_size=10, n_layer=1, n_head=2, n_embd=8, device="cpu")
    (data / "text.txt").write_text(TEXT, encoding="utf-8")
    policy, task = fill_in.build(settings, seed=0), masked_batches.load(masked_batches.Settings(path=data), seed=0)
    loss, count, _ = policy.supervised_loss([Example(p, "") for p in task.train], torch.Generator().manual_seed(0))
    assert (count, bool(loss.isfinite())) == (4, True)
    assert policy.sample(task.validation, 2, torch.Generator().manual_seed(0)).rows == 8


def test_inspect_batch_shows_them(data: Path, tmp_path: Path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"{{stage: sft, policy: {{kind: fill_in}}, task: {{kind: masked_batches, path: {data}}}}}", encoding="utf-8"
    )
    shown = relgrad("inspect-batch", recipe, "-n", "1", "--truth")
    assert "sample 0  sticky" in shown
    assert "sample 1" not in shown


# ---------------------------------------------------------------------- export


def network(**options: Any) -> GPT:
    torch.manual_seed(4)
    model = GPT(
        GPTConfig.model_validate(
            {**SIZES, "dropout": 0.0, "vocab_size": LETTERS.size, "attends_padding": True, **options}
        )
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"position_encoding": "absolute", "bias": True},
        {"attention_type": "causal", "position_encoding": "absolute"},
    ],
    ids=["rotary", "absolute-bias", "causal"],
)
def test_an_exported_policy_is_the_original_s_network(options: dict[str, Any], tmp_path: Path):
    """Its own implementation loads every weight by name and computes the same; and so does relgrad, reading the file again."""
    model = network(**options)
    assert save_checkpoint(tmp_path / "ckpt.pt", model, LETTERS) == []
    file = torch.load(tmp_path / "ckpt.pt", weights_only=True)
    theirs = Network(
        BASE + 3, absolute=options.get("position_encoding") == "absolute", causal="attention_type" in options,
        bias=options.get("bias", False), heads=("lm",),
    )  # fmt: skip
    theirs.load_state_dict(file["model"])
    same_logits(theirs, model, some_ids())
    meta = file["config"]["meta"]
    assert (meta["mask_token_id"], meta["pad_token_id"], meta["itos"][0], meta["stoi"]["a"]) == (
        MASK,
        PAD,
        TEXT[0],
        TEXT.index("a"),
    )
    again, vocabulary = load_checkpoint(tmp_path / "ckpt.pt")
    assert (again.config, vocabulary) == (model.config, LETTERS)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_what_an_export_cannot_carry_is_said(tmp_path: Path):
    notes = save_checkpoint(tmp_path / "ckpt.pt", network(critic=True, attends_padding=False), LETTERS)
    assert len(notes) == 2
    assert "the bias of the critic head is left out" in notes[0]
    assert "this network masks padding and the original does not" in notes[1]
    again, _ = load_checkpoint(tmp_path / "ckpt.pt")
    assert again.config.critic
    with pytest.raises(RelgradError, match="vocabularies are of characters, this is a byte vocabulary"):
        save_checkpoint(tmp_path / "b.pt", network(), Vocabulary("byte"))
    (tmp_path / "file").write_text("")
    with pytest.raises(RelgradError, match=r"file/ckpt\.pt cannot be written"):
        save_checkpoint(tmp_path / "file" / "ckpt.pt", network(), LETTERS)


def test_the_command_writes_it(tmp_path: Path):
    (tmp_path / "t.txt").write_text(TEXT, encoding="utf-8")
    policy = f"{{kind: fill_in, text: {tmp_path / 't.txt'}, n_layer: 1, n_head: 2, n_embd: 8, device: cpu}}"
    (tmp_path / "r.yaml").write_text(f"{{stage: sft, policy: {policy}, task: {{kind: masked_text}}}}", encoding="utf-8")
    assert relgrad("export", tmp_path / "r.yaml", tmp_path / "out" / "ckpt.pt").splitlines()[-1] == str(
        tmp_path / "out" / "ckpt.pt"
    )
    assert load_checkpoint(tmp_path / "out" / "ckpt.pt")[1] == LETTERS
    with pytest.raises(
        RelgradError, match="quick: a policy of kind autoregressive is saved in its library's own format"
    ):
        export("quick", tmp_path / "a.pt")


def test_other_labels_below_zero_are_refused():
    with pytest.raises(RelgradError, match="a label is -1; -100 is what stands"):
        translate_labels(torch.tensor([[-1, -100]]), None, "batch.pt")
