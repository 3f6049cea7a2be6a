"""Wrong command lines, over all commands: each ends with exit code 2 and one message that says what is wrong, and no traceback."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from relgrad.commands.cli import app

FILES = {
    "empty.yaml": "",
    "list.yaml": "- a\n- b\n",
    "tab.yaml": "policy:\n\tkind: x\n",
    "twice.yaml": "policy: {kind: autoregressive}\npolicy: {kind: flow}\n",
    "itself.yaml": "policy: &a [*a]\n",
    "no_reward.yaml": "policy: {kind: autoregressive, model: tiny}\ntask: {kind: digits}\n",
    "text.txt": "hello world\n" * 100,
    "bad.jsonl": '{"prompt":"a"}\n{"prompt":\n',
    "blank.jsonl": "\n\n",
    "numbers.jsonl": '{"prompt":3}\n',
    "reward.py": "def good(completions, **columns):\n    return [1.0] * len(completions)\n\nnumber = 3\n",
    "syntax.py": "def good(:\n",
    "exits.py": "import sys\nsys.exit(3)\n",
    "a_file": "x",
}
WRONG = {
    # recipes
    "run": "Missing argument",
    "run quick --nothing": "No such option: --nothing",
    "run quick --processes 0": "Input should be greater than or equal to 1",
    "run quick --from nowhere": "there are sft, grpo",
    "run nowhere": "built-in are countdown-unmasking, demo",
    "run empty.yaml": "a recipe is a mapping of settings, got NoneType",
    "run list.yaml": "a recipe is a mapping of settings, got list",
    "run tab.yaml": "not valid YAML",
    "run twice.yaml": "'policy' is written twice",
    "run itself.yaml": "an alias stands inside of what it stands for",
    "run no_reward.yaml": "rewards is empty",
    "run bytes": "not valid YAML",
    "run folder": "no recipe 'folder'",
    "run a_file": "a recipe is a mapping of settings, got str",
    "run syntax.py": "not a Python file",
    "run reward.py": "it is no configuration of a GRPO run",
    "run ''": "no recipe ''",
    # settings
    "run quick ''": "write key.sub=value",
    "run quick =3": "write key.sub=value",
    "run quick steps": "write key.sub=value",
    "run quick grpo.num_prompts=": "grpo.num_prompts: Input should be a valid integer (received None)",
    "run quick stages.1.grpo.steps=ten": "unable to parse string as an integer (received 'ten')",
    "run quick stages.1.grpo.steps=-1": "greater than or equal to 1 (received -1)",
    "run quick stages.1.grpo.steps=1e400": "received '1e400'",
    "run quick stages.1.grpo.learning_rate=nan": "greater than 0 (received 'nan')",
    "run quick stages.1.grpo.num_generations=1": "num_generations",
    "run quick stages.1.grpo.beta=-1": "beta",
    "run quick stages.1.grpo.loss=nowhere": "loss",
    "run fill-quick policy.denoise.steps=100000000": "less than or equal to 10000 (received 100000000)",
    "run forms-flow-quick policy.sampling_steps=100000000": "less than or equal to 10000 (received 100000000)",
    "run quick stages.9.grpo.steps=3": "the recipe has stages 0 to 1",
    "run quick stages.-1.grpo.steps=3": "stages: unknown key",
    "run quick stages=3": "stages: unknown key",
    "run quick seed=x": "seed: Input should be a valid integer",
    "run quick seed=1.5": "seed: Input should be a valid integer",
    "run quick name=": "name: Input should be a valid string",
    "run quick out=a_file": "a_file",
    "run quick policy=autoregressive": "policy: Input should be a valid dictionary",
    "run quick policy.kind=../x": "unknown kind '../x'",
    "run quick policy.kind=/etc/passwd": "unknown kind '/etc/passwd'",
    "run quick policy.kind=os.path": "os.path",
    "run quick 'policy.kind=auto regressive'": "Did you mean 'autoregressive'?",
    "run quick policy.kind=3": "put the text in quotes",
    "run quick policy.temperature=0": "temperature",
    "run quick policy.top_p=0": "top_p",
    "run quick policy.max_completion_length=0": "max_completion_length",
    "run quick policy.dtype=int8": "dtype",
    "run quick trackers=[nowhere]": "nowhere",
    "run quick rewards=[]": "rewards is empty",
    "run quick rewards.0=exact": "rewards.0: Input should be a valid dictionary",
    "run quick rewards.0.kind=../../x": "unknown kind '../../x'",
    "run quick \"rewards=[{kind: function, function: 'reward.py'}]\"": "write path/to/file.py:name",
    "run quick \"rewards=[{kind: function, function: 'reward.py:nothing'}]\"": "nothing",
    "run quick \"rewards=[{kind: function, function: 'reward.py:number'}]\"": "number",
    "run quick \"rewards=[{kind: function, function: 'nowhere.py:good'}]\"": "nowhere.py",
    "run quick \"rewards=[{kind: function, function: 'syntax.py:good'}]\"": "SyntaxError",
    "run quick \"rewards=[{kind: function, function: 'exits.py:good'}]\"": "exits.py",
    # tasks
    "run quick task.length=0": "length: Input should be greater than or equal to 1",
    "run quick task.operation=cube": "'reverse', 'copy' or 'sort' (received 'cube')",
    "run quick 'task={kind: file}'": "path: missing",
    "run quick 'task={kind: file, path: nowhere.jsonl}'": "nowhere.jsonl",
    "run quick 'task={kind: file, path: bad.jsonl}'": "bad.jsonl",
    "run quick 'task={kind: file, path: blank.jsonl}'": "blank.jsonl",
    "run quick 'task={kind: file, path: numbers.jsonl}'": "numbers.jsonl",
    "run quick 'task={kind: file, path: bad.jsonl, held_out_fraction: 2}'": "less than 1 (received 2)",
    "run fill-quick task.stages=simple": "'simple' is no mix of masks",
    "run fill-quick policy.n_head=3": "n_embd=64 over n_head=3",
    "run fill-quick policy.text=nowhere.txt task.text=nowhere.txt": "nowhere.txt",
    "run forms-flow-quick task.grammar.types=[nothing]": "received 'nothing'",
    "run forms-flow-quick task.grammar.max_fields=0": "greater than or equal to 1 (received 0)",
    "run forms-flow-quick policy.sampling_steps=0": "sampling_steps",
    "run forms-flow-quick policy.network.heads=5": "hidden=48 over heads=5",
    # what uses a run, or should
    "sample nowhere": "no recipe 'nowhere'",
    "sample folder": "neither a recipe nor a run folder",
    "sample quick -n 0": "Input should be greater than or equal to 1",
    "sample quick --steps 3": "does not write in several steps",
    "sample quick policy.temperature=-1": "greater than 0 (received -1)",
    "sample fill-quick --prompt nothing": "has no masked position",
    "sample fill-quick --remask nonsense --steps 3 --prompt a█b": "'confidence', 'critic' or 'random'",
    "sample fill-quick --schedule 2,3 --prompt a█b": "every share must be in [0, 1]",
    "evaluate folder": "neither a recipe nor a run folder",
    "evaluate quick --part train": "'train' is not one of",
    "evaluate quick nothing.at=all": "nothing: unknown key",
    "evaluate quick evaluation.num_prompts=x": "received 'x'",
    "audit nowhere": "Missing option '--generator'",
    "report nowhere": "no run folder 'nowhere'",
    "report a_file": "no run folder 'a_file'",
    "export nowhere x.pt": "no recipe 'nowhere'",
    "compare nowhere": "nowhere",
    "compare quick --stages.1.grpo.steps=ten": "unable to parse string as an integer (received 'ten')",
    "compare": "nothing to compare; name run folders",
    # data and the rest
    "prepare": "",
    "prepare --text nowhere.txt --out p": "nowhere.txt",
    "prepare --text text.txt --out a_file": "a_file cannot be written",
    "prepare --text text.txt --out p length=0": "greater than or equal to 4 (received 0)",
    "prepare --text text.txt --out p --files 0": "Input should be greater than or equal to 1",
    "prepare --text bytes --out p": "not UTF-8 text",
    "prepare quick --out p": "no stage has a task of kind masked_text",
    "inspect-batch nowhere": "nowhere",
    "inspect-batch text.txt": "text.txt is a text file",
    "inspect-batch folder": "no folder of masked samples",
    "inspect-batch fill-quick --meta a_file": "the recipe fill-quick has its own vocabulary; leave --meta out",
    "inspect-batch folder --meta a_file": "the folder folder has its own vocabulary; leave --meta out",
    "inspect-batch bytes": "not a file of tensors",
    "recipes extra": "unexpected extra argument",
    "demo nothing=3": "nothing: unknown key",
    "forms serve --family nothing": "no family 'nothing'",
    "forms serve --port 99999": "Input should be less than or equal to 65535",
    "forms serve max_fields=0": "greater than or equal to 1 (received 0)",
    "forms watch": "give a file with a plan",
    "forms watch nowhere": "cannot read the plan 'nowhere'",
    "fly": "No such command 'fly'",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    (folder / "bytes").write_bytes(bytes(range(256)) * 10)
    (folder / "folder").mkdir()
    return folder


@pytest.mark.parametrize("line", WRONG)
def test_one_message_and_no_traceback(place: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    monkeypatch.chdir(place)
    result = CliRunner().invoke(app, shlex.split(line), env={"COLUMNS": "1000", "NO_COLOR": "1", "TERM": "dumb"})
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert WRONG[line] in " ".join(result.output.split())
