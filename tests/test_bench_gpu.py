"""The benchmark `gpu`: every section runs, on a CPU and with tiny networks; what fails is recorded with its reason."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import flow_large, gpu, gpu_decode, gpu_steps, models, run
from benchmarks.gpu import Section, outcome
from benchmarks.systems import Job
from typer.testing import CliRunner

TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY |= {"num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64, "tie_word_embeddings": True}
WORDS = 4096
PROJECTIONS = 2 * 32 * (2 * 32 + 2 * 16 + 3 * 64)
"""Weights of 2 layers' queries and output, keys and values, and feed-forward."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("RELGRAD_CACHE", str(tmp_path))
    return str(gpu.qwen3_folder(WORDS, TINY, "tiny"))


def test_a_model_is_written_whole_or_not_at_all(folder: str, tmp_path: Path) -> None:
    assert [path.name for path in (tmp_path / "benchmarks").iterdir()] == ["tiny"]
    assert json.loads((Path(folder) / "config.json").read_text())["vocab_size"] == WORDS
    assert str(gpu.qwen3_folder(WORDS, TINY, "tiny")) == folder


def test_there_is_time_for_all_sections() -> None:
    assert sum(section.limit_s for section in gpu.SECTIONS) < 480


def first_only(arms: Sequence[str]) -> list[Any]:
    """The first contender; `slow` has the others."""
    return [pytest.param(arm, marks=pytest.mark.slow if number else ()) for number, arm in enumerate(arms)]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_matmul(dtype: str) -> None:
    assert gpu.matmul(dtype, "cpu")["gemm_gflops"] > 0


def test_relgrad_decodes_in_bfloat16(folder: str) -> None:
    job = gpu_decode.Decode(folder, models.word_prompts(2, 5), "cpu", group_size=2, length=6)
    assert gpu_decode.measured("relgrad", job)["dtype"] == "bfloat16"


@pytest.mark.parametrize("arm", first_only(gpu_decode.ARMS))
def test_decoding(folder: str, arm: str) -> None:
    job = gpu_decode.Decode(folder, models.word_prompts(2, 5), "cpu", "float32", group_size=2, length=6, repeats=1)
    figures = gpu_decode.measured(arm, job)
    assert figures["tokens"] == 2 * 2 * 6
    assert figures["tokens_per_s"] == pytest.approx(24 / figures["seconds"])
    assert figures["matmul_share"] == pytest.approx(figures["gflop"] / figures["seconds"] / figures["gemm_gflops"])
    # two products per weight; attention of a token to itself adds 4 per layer, head and dimension
    weights = PROJECTIONS + 32 * WORDS
    assert figures["gflop"] == pytest.approx(24 * (2 * weights + 4 * 2 * 2 * 16) / 1e9)


@pytest.mark.parametrize("arm", first_only(gpu_steps.ARMS))
def test_steps(folder: str, arm: str) -> None:
    pytest.importorskip("trl")
    job = Job(
        folder, models.word_prompts(6, 5), models.reward, num_prompts=2, num_generations=2, length=6, steps=2,
        learning_rate=1e-4, lora=True, exact_length=True,
    )  # fmt: skip
    figures = gpu_steps.measured(arm, job, "cpu")
    assert figures["tokens"] == 2 * 2 * 6
    # sampling, scoring and the gradient of the activations are at least three forward passes of the completions
    assert figures["gflop"] > 3 * 24 * 2 * PROJECTIONS / 1e9
    assert figures["tokens_per_s"] == pytest.approx(24 / figures["seconds"])


def test_trl_is_left_as_it_came() -> None:
    trl = pytest.importorskip("trl")
    as_shipped = trl.GRPOConfig
    with gpu_steps.trl_on("cpu"):
        assert trl.GRPOConfig is not as_shipped
    assert trl.GRPOConfig is as_shipped


@pytest.mark.parametrize("arm", first_only(flow_large.ARMS))
def test_flow(arm: str) -> None:
    job = flow_large.Large(
        vocabulary=40, prompt=9, positions=6, rows=5, device="cpu", policy=(("model", "tiny"), ("sampling_steps", 3))
    )
    figures = gpu.flow(arm, job)
    assert figures["tokens_per_s"] == pytest.approx(figures["rows"] * 6 / figures["seconds"])


@pytest.mark.slow
def test_sections_run_apart_and_what_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELGRAD_CACHE", str(tmp_path))
    sections = (
        Section("matmul", "", "float32", 60),
        Section("matmul", "", "float7", 60),
        Section("matmul", "", "bfloat16", 0.01),
    )
    file, seen = tmp_path / "gpu.json", []
    records = gpu.run(
        sections, "cpu", file, {"torch": torch.__version__}, lambda _: seen.append(json.loads(file.read_text()))
    )
    assert [len(saved["records"]) for saved in seen] == [1, 2, 3]
    assert {"date", "torch", "packages", "hardware"} <= seen[0].keys()
    assert records[0]["gemm_gflops"] > 0
    assert "float7" in records[1]["reason"]
    assert records[2]["reason"].startswith("out of time: not done after 0.01 s")
    columns = gpu.tables(records)[0].columns
    assert [cell == "" for cell in columns[-1].cells] == [True, False, False]
    assert list(columns[6].cells)[1:] == ["-", "-"]


def test_running_out_of_memory_is_a_reason() -> None:
    errors = "Traceback\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n"
    assert outcome("", errors, 1, None)["reason"].startswith("out of memory: torch.OutOfMemoryError")
    assert outcome('noise\nRESULT {"seconds": 2.0}\n', errors, 0, None) == {"seconds": 2.0}


def test_without_a_cuda_device_the_command_says_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(run.app, ["gpu"])
    assert result.exit_code == 1
    assert "NVIDIA GPU" in result.output
