"""A server that writes the completions of training: what it is asked for, refused for, and what training makes of it."""

from __future__ import annotations

import dataclasses
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError
from safetensors.torch import load_file

import forked
from commands import lines
from completions_server import Listening, Models
from relgrad.backends.completions import Completions
from relgrad.core.errors import RelgradError, ServerFailed
from relgrad.core.ranks import ALONE
from relgrad.core.types import Output, Prompt, Rollouts
from relgrad.laws.precision import ROUNDING
from relgrad.objectives.losses import PolicyLoss
from relgrad.policies.autoregressive import AutoregressivePolicy, Settings, build
from relgrad.rewards.combine import NamedReward, RewardSet
from relgrad.runs.course import Course
from relgrad.runs.recipe import parse_recipe
from relgrad.runs.run import run_recipe
from relgrad.training.experience import ByItself
from relgrad.training.grpo import Grpo, GrpoSettings
from relgrad.training.remote import Remote
from relgrad.training.settings import RemoteSettings

MODEL = "tiny:32x1"
PROMPTS = [Prompt(f"{number}=", id=number) for number in range(6)]
RECIPE: dict[str, Any] = {
    "name": "r",
    "policy": {
        "kind": "autoregressive", "model": MODEL, "max_completion_length": 6, "lora": {"r": 4, "alpha": 16}, "device": "cpu",
    },
    "task": {"kind": "digits", "length": 4},
    "rewards": [{"kind": "function", "function": f"{__file__}:share_of_digits"}],
    "grpo": {"steps": 2, "num_prompts": 2, "num_generations": 4, "learning_rate": 1e-2},
    "evaluation": {"num_prompts": 2, "num_generations": 2},
}  # fmt: skip


def share_of_digits(prompt: Prompt, outputs: Sequence[Output]) -> list[float]:
    return [sum(c.isdigit() for c in output.text) / 6 for output in outputs]


@contextmanager
def serving(fault: str | None = None, model: str = MODEL, port: int = 0) -> Iterator[Listening]:
    """A server in a thread of this process."""
    listening = Listening(Models(model, fault), port)
    threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield listening
    finally:
        listening.shutdown()
        listening.server_close()


def policy(**settings: Any) -> AutoregressivePolicy:
    """A policy whose adapter is far from its neutral start; the same one every time."""
    made = build(_settings(settings), seed=0)
    for name, parameter in made.parameters():
        if "lora_B" in name:
            draw = torch.Generator().manual_seed(len(name))
            with torch.no_grad():
                parameter += 0.2 * torch.randn(parameter.shape, generator=draw)
    return made


def _settings(changes: dict[str, Any]) -> Settings:
    return Settings(**{key: value for key, value in {**RECIPE["policy"], **changes}.items() if key != "kind"})


def remote(to: AutoregressivePolicy, url: str, folder: Path, **settings: Any) -> Remote:
    chosen = RemoteSettings(**{"url": url, "model": MODEL, "deadline": 20.0, "retries": 1, **settings})
    server = Completions(url, deadline=chosen.deadline, timeout=chosen.timeout, retries=chosen.retries, first_wait=0.01)
    return Remote(to, server, chosen, "r-grpo", folder, ALONE)


class Again:
    """Gives what a writer wrote once more, as if the policy had written it itself."""

    name = "policy"

    def __init__(self, rollouts: Rollouts) -> None:
        self.rollouts = rollouts

    def prepare(self) -> None: ...

    def sample(self, *_: Any) -> Rollouts:
        return dataclasses.replace(self.rollouts, foreign=False)


def loop(writer: Any, trained: AutoregressivePolicy, settings: RemoteSettings | None) -> Grpo:
    grpo = GrpoSettings(
        steps=3, num_prompts=3, num_generations=4, learning_rate=1e-2, remote=settings, scale_rewards="none"
    )
    rewards = RewardSet([NamedReward("digits", share_of_digits, 1.0)], 60.0)
    return Grpo(trained, PROMPTS, rewards, PolicyLoss(), grpo, writer=writer)


def first_gradient(made: Grpo, trained: AutoregressivePolicy) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The gradient of the first step, and what the step logs."""
    gradients: dict[str, torch.Tensor] = {}
    apply = made.optimizer.step

    def step(number: int) -> dict[str, float]:
        gradients.update({name: p.grad.clone() for name, p in trained.parameters() if p.grad is not None})
        return apply(number)

    made.optimizer.step = step  # type: ignore[method-assign]
    return gradients, made.update().metrics


def test_with_the_same_arithmetic_the_gradient_is_the_local_one(tmp_path: Path):
    trained = policy()
    with serving() as server:
        writer = remote(trained, server.address, tmp_path)
        kept: list[Rollouts] = []
        sample = writer.sample
        writer.sample = lambda *a: kept.append(sample(*a)) or kept[-1]  # type: ignore[method-assign, func-returns-value]
        there, figures = first_gradient(loop(writer, trained, writer.settings), trained)
    assert kept[0].foreign
    assert kept[0].policy_version == 0
    local = policy()
    here, _ = first_gradient(loop(Again(kept[0]), local, None), local)
    assert there.keys() == here.keys()
    assert any(gradient.abs().max() > 1e-3 for gradient in here.values())
    for name, gradient in here.items():
        # log-probabilities that differ by rounding are ratios and weights that differ by as much, relative to their size
        torch.testing.assert_close(there[name], gradient, atol=1e-4 * float(gradient.abs().max()) + 1e-7, rtol=1e-4)
    assert figures["sampling/sampling_logp_difference/max"] < 10 * ROUNDING[torch.float32]
    assert figures["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
def test_what_the_server_draws_is_what_the_policy_would(tmp_path: Path):
    """Of 5,000 first tokens every token's share is its probability under the policy, adapter included (chi-squared)."""
    trained = policy(max_completion_length=1)
    with serving() as server:
        writer = remote(trained, server.address, tmp_path)
        writer.prepare()
        drawn = writer.sample(PROMPTS[:1], 5_000, torch.Generator().manual_seed(1))
    token_B = drawn.trace["token_BT"][:, 0].long()
    with torch.no_grad():
        logits = trained.model(trained.encode(PROMPTS[0])[None]).logits[0, -1].double()
    expected_V = 5_000 * logits.softmax(-1)
    count_V = torch.bincount(token_B, minlength=len(expected_V)).double()
    frequent = expected_V >= 5
    chi = ((count_V - expected_V)[frequent] ** 2 / expected_V[frequent]).sum()
    degrees = int(frequent.sum()) - 1
    assert float(chi) < degrees + 5 * (2 * degrees) ** 0.5


def test_adapters_are_versioned_and_the_last_one_goes(tmp_path: Path):
    trained = policy()
    with serving() as server:
        writer = remote(trained, server.address, tmp_path, sync_every=2)
        made = loop(writer, trained, writer.settings)
        for _ in range(3):
            figures = made.update().metrics
        loads = [body["lora_name"] for path, body in server.requests if path == "/v1/load_lora_adapter"]
        models = list(server.models.policies)
    assert [re.sub("-[0-9a-f]{8}$", "", name) for name in loads] == ["r-grpo-v0", "r-grpo-v2"]
    assert models == [MODEL, loads[-1]]
    assert [folder.name for folder in tmp_path.iterdir()] == [loads[-1]]
    assert figures["sampling/sampling_logp_difference/max"] < 10 * ROUNDING[torch.float32], (
        "step 3 has the adapter of step 2"
    )


def test_an_older_adapter_is_corrected_for_and_no_fault(tmp_path: Path):
    trained = policy()
    with serving() as server:
        writer = remote(trained, server.address, tmp_path, sync_every=9, tolerance=1e-3)
        made = loop(writer, trained, writer.settings)
        made.update()
        figures = made.update().metrics
    assert figures["sampling/sampling_logp_difference/mean"] > 1e-3
    assert made.batch is not None
    assert made.batch.correction_BT is not None
    assert not torch.allclose(made.batch.correction_BT[made.batch.mask_BT], torch.ones(()), atol=1e-3)


@pytest.mark.parametrize(
    ("fault", "settings", "message"),
    [
        (None, {"model": "other"}, r"has no model 'other' \(grpo.remote.model\). It has tiny:32x1"),
        ("other-tokenizer", {}, "the tokenizer of 'tiny:32x1' is another one"),
        ("no-token-ids", {}, "tells no token ids"),
        ("no-logprobs", {}, "tells no log-probabilities"),
        ("ignores-adapters", {}, "nats away from the policy's on average"),
        ("raw-logprobs", {"temperature": 0.5}, "another law than temperature 0.5"),
        ("raw-logprobs", {"temperature": 1.1}, "another law than temperature 1.1"),
        ("refuses-adapters", {}, "VLLM_ALLOW_RUNTIME_LORA_UPDATING"),
        ("silent", {"deadline": 0.2}, r"/models: no answer within 0.2 s"),
    ],
)
def test_a_wrong_server_is_refused_at_the_start(
    fault: str | None, settings: dict[str, Any], message: str, tmp_path: Path
):
    temperature = settings.pop("temperature", 1.0)
    with serving(fault) as server:
        writer = remote(policy(temperature=temperature), server.address, tmp_path, retries=0, **settings)
        with pytest.raises(ServerFailed, match=message):
            writer.probe(PROMPTS)


def test_a_looser_tolerance_is_taken_at_its_word_and_the_default_depends_on_the_temperature() -> None:
    default = RemoteSettings(url="http://x/v1", model="m")
    loose = RemoteSettings(url="http://x/v1", model="m", tolerance=0.3)
    assert default.tolerance_at(1.0) == 0.1
    assert default.tolerance_at(0.9) < 0.064 / 2, "raw log-probs at 0.9 were 0.064 to 0.090 away"
    assert loose.tolerance_at(0.9) == loose.tolerance_at(1.0) == 0.3


def test_another_model_of_the_same_name_is_refused(tmp_path: Path):
    trained = policy()
    with torch.no_grad():
        for parameter in trained.model.parameters():
            parameter *= 1.5
    with serving() as server, pytest.raises(ServerFailed, match="nats away from the policy's on average"):
        remote(trained, server.address, tmp_path).probe(PROMPTS)


def test_a_right_server_passes_and_old_adapters_go(tmp_path: Path):
    trained = policy()
    with serving() as server:
        remote(trained, server.address, tmp_path).probe(PROMPTS)
        report = remote(trained, server.address, tmp_path).probe(PROMPTS)
        assert len(server.models.policies) == 2
    assert re.search(r"its log-probabilities of \d+ tokens are \S+ nats away", report)


def test_a_server_that_stops_using_the_adapter_is_found_in_mid_run(tmp_path: Path):
    trained = policy()
    with serving() as server:
        writer = remote(trained, server.address, tmp_path)
        made = loop(writer, trained, writer.settings)
        made.update()
        server.models.fault = "ignores-adapters"
        with pytest.raises(ServerFailed, match=r"step 2: .* does not compute with the adapter"):
            made.update()
        assert made.step == 1


def test_a_server_that_was_started_anew_is_given_the_adapter_again(tmp_path: Path):
    trained = policy()
    with serving() as server:
        writer = remote(trained, server.address, tmp_path)
        writer.prepare()
        lost = [name for name in server.models.policies if name != MODEL]
        for name in lost:
            server.models.unload(name)
        drawn = writer.sample(PROMPTS[:1], 2, torch.Generator().manual_seed(0))
        assert drawn.rows == 2
        assert [name for name in server.models.policies if name != MODEL] == lost


def test_policies_no_server_can_speak_for(tmp_path: Path):
    for changes, message in (({"lora": None}, "Add a lora section"), ({"top_p": 0.9}, "Set top_p to 1")):
        with pytest.raises(RelgradError, match=message):
            remote(build(_settings(changes), seed=0), "http://127.0.0.1:1/v1", tmp_path)
    with pytest.raises(RelgradError, match="it can for policies of kind autoregressive"):
        Remote(ByItself(policy()), None, RemoteSettings(url="http://x/v1", model="m"), "r", tmp_path, ALONE)  # type: ignore[arg-type]
    for values, message in (({"key": "sk-123456"}, "env:NAME"), ({"url": "x"}, "http://")):
        with pytest.raises(ValueError, match=message):
            RemoteSettings(**{"url": "http://x/v1", "model": "m", **values})


# ---------------------------------------------------------------------- whole runs


@contextmanager
def elsewhere(folder: Path, model: str = MODEL) -> Iterator[tuple[str, BaseProcess]]:
    """A server in another process: its address, and the process."""
    output = folder / f"server-{time.monotonic_ns()}"
    script = Path(__file__).with_name("completions_server.py")
    process = forked.start(["python", str(script), model, "--port", "0"], output)
    try:
        deadline = time.monotonic() + 60
        while not (match := re.search(r"at (http\S+)", output.read_text() if output.exists() else "")):
            assert process.is_alive(), output.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield match[1], process
    finally:
        process.kill()
        process.join()


def recipe(folder: Path, url: str, model: str = MODEL, **grpo: Any) -> Any:
    section = {**RECIPE["grpo"], "remote": {"url": url, "model": model, "retries": 1}, **grpo}
    return parse_recipe({**RECIPE, "policy": {**RECIPE["policy"], "model": model}, "grpo": section, "out": str(folder)})


def spread(folder: Path) -> str:
    """The tiny model with a head of larger weights, so that an adapter below it can move what is written."""
    made = build(_settings({"lora": None}), seed=0)
    with torch.no_grad():
        made.model.lm_head.weight *= 10
    made.save(folder)
    return str(folder)


def test_a_run_learns_through_a_server_in_another_process(tmp_path: Path):
    model = spread(tmp_path / "model")
    with elsewhere(tmp_path, model) as (url, _):
        run_recipe(recipe(tmp_path, url, model, steps=10, num_prompts=2, num_generations=16, learning_rate=3e-2))
    folder = tmp_path / "r" / "1-grpo"
    records = lines(folder / "metrics.jsonl")
    rewards = [record["reward"] for record in records]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.2, rewards
    assert all(record["sampling/sampling_logp_difference/max"] < 1e-3 for record in records)
    assert "completions are written by http" in (folder / "training.log").read_text()
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["grpo"]["remote"]["url"] == url


def test_a_server_that_dies_ends_the_run_saved_and_another_one_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    after = Course.after
    with elsewhere(tmp_path) as (url, process), serving() as other:
        run_recipe(recipe(tmp_path / "whole", other.address, steps=3))

        def then_dies(self: Course, record: Any) -> bool:
            process.kill()
            process.join()
            return after(self, record)

        with monkeypatch.context() as patch:
            patch.setattr(Course, "after", then_dies)
            with pytest.raises(RelgradError, match=r"no connection .*2 attempts.*newest complete checkpoint is step 1"):
                run_recipe(recipe(tmp_path / "cut", url, steps=3))
        run_recipe(recipe(tmp_path / "cut", other.address, steps=3))
    whole, cut = (
        load_file(tmp_path / name / "r/1-grpo/checkpoints/step_000003/adapter_model.safetensors")
        for name in ("whole", "cut")
    )
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert any(bool(tensor.any()) for name, tensor in whole.items() if "lora_B" in name)


def test_two_processes_share_a_server_and_follow_one(tmp_path: Path):
    """Each asks for the completions of its own prompts, and one of them alone hands over the adapter."""
    stages = []
    with elsewhere(tmp_path) as (url, _):
        for processes in (1, 2):
            out = tmp_path / f"by-{processes}"
            plain = {**RECIPE, "out": str(out)}
            plain["grpo"] = {**RECIPE["grpo"], "remote": {"url": url, "model": MODEL}}
            (tmp_path / f"{processes}.yaml").write_text(yaml.safe_dump(plain), encoding="utf-8")
            for ended in forked.ranks(processes, "relgrad", "run", tmp_path / f"{processes}.yaml"):
                assert ended.returncode == 0, ended.stdout + ended.stderr
            stages.append(out / "r" / "1-grpo")
    one, two = (lines(stage / "metrics.jsonl") for stage in stages)
    assert len(one) == len(two) == 2
    for record, same in zip(one, two, strict=True):
        for name in ("reward", "loss", "grad_norm", "completions/mean_length"):
            assert same[name] == pytest.approx(record[name], rel=1e-4, abs=1e-4), f"step {record['step']}: {name}"
    assert one[0]["grad_norm"] > 0
    written = [(stage / "samples" / "step_000001.jsonl").read_text(encoding="utf-8") for stage in stages]
    assert written[0] == written[1]


@pytest.mark.slow
def test_the_quick_task_is_learnt_through_a_server(tmp_path: Path):
    """The task and warm start of the recipe `quick`, then GRPO of an adapter that another process writes with."""
    stages = yaml.safe_load((Path(__file__).parents[1] / "recipes" / "quick.yaml").read_text())
    warm, grpo = stages.pop("stages")
    run_recipe(parse_recipe({**stages, "name": "q", "out": str(tmp_path), "stages": [warm]}))
    warmed = next((tmp_path / "q" / "1-sft" / "checkpoints").glob("step_*"))
    with elsewhere(tmp_path, str(warmed)) as (url, _):
        lora = {"lora": {"r": 16, "alpha": 32}}
        grpo["grpo"] |= {"steps": 25, "learning_rate": 3e-3, "remote": {"url": url, "model": str(warmed)}}
        policy_section = {**stages["policy"], "model": str(warmed), **lora}
        run_recipe(
            parse_recipe({**stages, "name": "g", "out": str(tmp_path), "policy": policy_section, "stages": [grpo]})
        )
    before, after = (
        record["score"] for record in lines(tmp_path / "g" / "1-grpo" / "evaluations.jsonl") if record["name"] == "test"
    )
    print(f"score of test prompts {before:.3f} -> {after:.3f}")
    assert after > before + 0.1


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://127.0.0.1:abc/v1", "cannot be read"),
        ("http://127.0.0.1:99999/v1", "cannot be read"),
        ("http://[::1/v1", "cannot be read"),
        ("http://127.0.0.1\n:8000/v1", "a space or a control character"),
        ("http://", "names no host"),
        ("http:///v1", "names no host"),
        ("ftp://127.0.0.1/v1", "begins with http:// or https://"),
    ],
)
def test_an_address_that_is_none_is_refused_with_the_recipe(url: str, why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        RemoteSettings(url=url, model="m")


def test_an_address_that_the_client_refuses() -> None:
    with pytest.raises(ServerFailed, match="is no address of a server"):
        Completions("http://[::1/v1")
