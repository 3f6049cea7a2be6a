"""The probe of the replies reward: is a text an ordinary one, or promotion, machine talk, abuse, or words in no order?

    python -m benchmarks.replies_probe

A softmax regression on MiniLM vectors, trained on the phrases of replies_phrases.yaml, on sentences of the built-in data set, and
on shuffles of these. Phrases are filled several times; the classes count equally. It writes probe.safetensors beside the reward and
prints how well it does on phrases, and on matters, that were left out (five parts in turn).
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from relgrad.rewards.replies.probe import CLASSES, FILE
from relgrad.text.embedding import embed
from relgrad.text.replies import made

DECAY, FILLS, PARTS = 0.003, 4, 5


def examples() -> list[tuple[str, str, int]]:
    """(text, class, part): all fillings of a phrase, and all sentences of a matter, are in one part."""
    draw = Random("probe")
    phrases = yaml.safe_load((Path(__file__).parent / "replies_phrases.yaml").read_text(encoding="utf-8"))
    topics = sorted({matter.topic.replace("_", " ") for matter in made.matters()})
    found = []
    for name, lines in phrases.items():
        for number, line in enumerate(lines.strip().splitlines()):
            for _ in range(FILLS if "{" in line or "[" in line else 1):
                text = made.filled(line.replace("{topic}", draw.choice(topics)), draw)
                found.append((text, name, number % PARTS))
                if name == "ordinary":
                    found.append((shuffled(text, draw), "shuffled", number % PARTS))
    for number, matter in enumerate(made.matters()):
        for role, lines in matter.sentences.items():
            for line in lines:
                text = made.filled(line, draw)
                found.append((text, "ordinary", number % PARTS))
                if role in made.GOOD:
                    found.append((shuffled(text, draw), "shuffled", number % PARTS))
    return found


def shuffled(text: str, draw: Random) -> str:
    """The words of a text in another order, written as a sentence."""
    words = text.rstrip(".!?").split()
    draw.shuffle(words)
    mixed = " ".join(words)
    return f"{mixed[0].upper()}{mixed[1:]}."


def train(vector_ND: Tensor, class_N: Tensor) -> tuple[Tensor, Tensor]:
    """Weights [classes, 384] and biases, by L-BFGS on the class-balanced log loss with weight decay."""
    weight_CD = torch.zeros(len(CLASSES), vector_ND.shape[1], requires_grad=True)
    bias_C = torch.zeros(len(CLASSES), requires_grad=True)
    balance_C = len(class_N) / (len(CLASSES) * torch.bincount(class_N, minlength=len(CLASSES)).clamp(min=1))
    optimizer = torch.optim.LBFGS([weight_CD, bias_C], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(vector_ND @ weight_CD.T + bias_C, class_N, weight=balance_C)
        loss = loss + DECAY * weight_CD.square().sum() / len(CLASSES)
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight_CD.detach(), bias_C.detach()


def main() -> None:
    found = examples()
    vector_ND = embed([text for text, _, _ in found]).clone()
    class_N = torch.tensor([CLASSES.index(name) for _, name, _ in found])
    part_N = torch.tensor([part for _, _, part in found])
    right = torch.zeros(len(CLASSES), len(CLASSES), dtype=torch.int64)
    for part in range(PARTS):
        weight_CD, bias_C = train(vector_ND[part_N != part], class_N[part_N != part])
        said_N = (vector_ND[part_N == part] @ weight_CD.T + bias_C).argmax(-1)
        for truth, said in zip(class_N[part_N == part].tolist(), said_N.tolist(), strict=True):
            right[truth, said] += 1
    print(f"{len(found)} texts; rows: what a left-out text is, columns: what is said of it, in per cent")
    for name, row in zip(CLASSES, right, strict=True):
        print(f"{name:10}", *(f"{100 * value / row.sum():5.1f}" for value in row))
    weight_CD, bias_C = train(vector_ND, class_N)
    save_file({"weight_CD": weight_CD, "bias_C": bias_C}, FILE)


if __name__ == "__main__":
    main()
