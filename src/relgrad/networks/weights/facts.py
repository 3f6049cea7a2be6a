"""What policies say of themselves in the same words, for the head of the report (protocols.Described)."""

from __future__ import annotations

import torch


def count_parameters(network: torch.nn.Module) -> int:
    """How many numbers a network has, trained or not; shared ones count once."""
    return sum(parameter.numel() for parameter in network.parameters())


def truncation_facts(temperature: float, top_p: float = 1.0, top_k: int = 0) -> dict[str, str]:
    """The law that every choice is drawn from: its temperature and, where the support is cut, by what."""
    facts = {"Temperature": f"{temperature:g}"}
    if top_p < 1:
        facts["Top-p"] = f"{top_p:g}"
    if top_k:
        facts["Top-k"] = f"{top_k}"
    return facts
