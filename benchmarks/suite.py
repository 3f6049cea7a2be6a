"""How long the evaluation suite takes on stored generations: four policies x 100 prompts x 10 completions, all metrics.

OMP_NUM_THREADS=2 python -m benchmarks.suite
"""

from __future__ import annotations

import random
import re
import sys
import tempfile
import time
from pathlib import Path

from relgrad.evaluation import generations
from relgrad.evaluation.generations import Generations, Written
from relgrad.runs.suite import from_file

POLICIES, PROMPTS, COMPLETIONS, WORDS = 4, 100, 10, 20
SUITE = {
    "passing": {"kind": "regex", "pattern": "really", "name": "a word", "threshold": 1.0},
    "references": "reply",
    "semantic": True,
}


TEXT = """
    the a this that great really good bad new old market team post idea point question thanks think know see agree wrong right
    people time year work change price model game player data food city music film news week today never always often maybe why
"""
VOCABULARY = re.findall(r"\w+", TEXT)


def sentence(draw: random.Random) -> str:
    return " ".join(draw.choice(VOCABULARY) for _ in range(WORDS))


def written(name: str, seed: int) -> Written:
    """One policy's completions: words at random."""
    draw = random.Random(seed)
    records = []
    for prompt in range(PROMPTS):
        samples = [
            {
                "text": sentence(draw),
                "ids": list(range(WORDS)),
                "stop": "eos",
                "tokens": WORDS,
                "rewards": [draw.random()],
            }
            for _ in range(COMPLETIONS)
        ]
        columns = {"reply": sentence(random.Random(prompt))}
        told = {"id": prompt, "content": f"prompt {prompt}", "columns": columns, "family": ""}
        records.append({"prompt": told, "base": {"nll": 200.0, "tokens": 100}, "samples": samples})
    return Written(name, 0, tuple(records))


def main() -> int:
    facts = {
        "task": "words", "part": "test", "measured_as": "words", "prompts": PROMPTS, "num_generations": COMPLETIONS,
        "evaluation_seed": 0, "mirrored": False, "notes": [], "adapters": {},
    }  # fmt: skip
    names = [f"policy-{number}" for number in range(POLICIES)]
    contenders = tuple((name, (written(name, number),)) for number, name in enumerate(names))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "generations.jsonl"
        generations.write(Generations(facts, SUITE, ("score",), (1.0,), contenders), file)
        started, cpu = time.perf_counter(), time.process_time()
        record = from_file(file, ["evaluation.suite.perplexity=true"])
        wall, used = time.perf_counter() - started, time.process_time() - cpu
    print(f"{len(record['figures'])} figures of {POLICIES} policies: {wall:.1f} s, {used:.1f} s of CPU")
    return 0


if __name__ == "__main__":
    sys.exit(main())
