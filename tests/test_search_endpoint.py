"""A search whose questions a real server answers: problems of GSM8K, SmolLM2 behind `transformers serve`, killed and continued."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import forked
from commands import lines, relgrad
from served_model import served_smollm2

GSM8K = Path(__file__).parents[2] / "shared" / "data" / "gsm8k_train_2000.jsonl"
CALLS = 60


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """(url, name of the model)."""
    with served_smollm2(tmp_path_factory.mktemp("server") / "log") as place:
        yield place


@pytest.mark.slow
@pytest.mark.skipif(not GSM8K.is_file(), reason="no problems of GSM8K beside the repository")
def test_a_search_on_gsm8k_keeps_its_budget_and_pays_nothing_twice(server: tuple[str, str], tmp_path: Path) -> None:
    url, model = server
    words = [
        "search", "workflows-gsm8k", f"out={tmp_path}", f"search.backend.url={url}", f"search.backend.model={model}",
        "search.backend.retries=2", f"search.problems.path={GSM8K}", f"search.budget.calls={CALLS}", "search.max_tokens=32",
    ]  # fmt: skip
    folder = tmp_path / "workflows-gsm8k"
    journal = folder / "calls.jsonl"
    process = forked.start(["relgrad", *words], tmp_path / "output")
    deadline = time.monotonic() + 1200
    while not (journal.is_file() and journal.read_bytes().count(b'"reply"') >= CALLS // 3):
        assert process.is_alive(), (tmp_path / "output").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.join()
    answered = [json.loads(line) for line in journal.read_bytes().splitlines() if b'"reply"' in line]

    relgrad(*words)
    result = json.loads((folder / "result.json").read_text())
    kept = lines(journal)
    assert [line for line in kept if "reply" in line][: len(answered)] == answered
    asked = Counter(line["asked"] for line in kept if "asked" in line)
    assert sum(count - 1 for count in asked.values()) == result["in_flight"]["calls"] <= 2
    assert result["spent"]["calls"] <= CALLS
    assert result["workflows"] > 1
    assert len(json.loads((folder / "tree.json").read_text())["trees"]) == 1
    (best,) = result["best"]
    assert best["trials"] > 0
    assert 0 <= best["accuracy"] <= 1
    assert [row["name"] for row in result["test"]][:3] == ["best", "one call", "step by step"]
    assert all(row["problems"] == 10 and 0 <= row["accuracy"] <= 1 for row in result["test"])
