r"""Which decision is next, given what lists are now and what they should become? A deep set (Zaheer et al. 2017, arXiv:1703.06114).

    h_e = encoder(features(now_e, goal_e)),     logits = head(mean_e h_e, max_e h_e, decisions left)

The order of the examples does not matter. Features of a list are its length and, at every position, whether a number is there,
the number on two scales, and whether it is odd; of a pair, which numbers of the one are equal to which of the other.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from relgrad.core.settings import Strict
from relgrad.networks.weights.folder import SavedNetwork

PAD = -32768
"""What stands where a list has no number."""
ABSENT = -32767
"""What stands in the place of an example that there is not."""
OF_A_NUMBER = 4


class ExampleSetConfig(Strict):
    """`longest` numbers a list, `actions` to choose from, at most `most_steps` decisions; `hidden` units a layer."""

    actions: int = Field(18, ge=1)
    longest: int = Field(8, ge=1)
    most_steps: int = Field(3, ge=1)
    hidden: int = Field(128, ge=1)


class ExampleSet(SavedNetwork):
    """Logits of decisions."""

    config_type: ClassVar[type[Strict]] = ExampleSetConfig
    called: ClassVar[str] = "a network of example sets"
    config: ExampleSetConfig

    def __init__(self, config: ExampleSetConfig) -> None:
        super().__init__(config)
        length, hidden = config.longest, config.hidden
        width = 2 * (OF_A_NUMBER * length + 1) + length * length
        self.encoder = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(2 * hidden + config.most_steps, hidden), nn.ReLU())
        self.last = nn.Linear(hidden, config.actions)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.parameters()).dtype

    @classmethod
    def new(cls, config: ExampleSetConfig, seed: int) -> ExampleSet:
        """Weights by He et al. 2015 from the seed; the last layer a tenth of that: all decisions begin about equally likely."""
        draw = torch.Generator().manual_seed(seed)
        network = cls(config)
        layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
        with torch.no_grad():
            for layer in layers:
                scale = math.sqrt(2 / layer.in_features) * (0.1 if layer is layers[-1] else 1.0)
                layer.weight.copy_(scale * torch.randn(layer.weight.shape, generator=draw))
                layer.bias.zero_()
        return network.eval()

    def forward(self, values_NE2L: Tensor, left_N: Tensor) -> Tensor:
        """Logits [N, actions], of int values [N, examples, (now, goal), longest], PAD where there is none,
        ABSENT for whole examples that there are not; `left_N`: 1 .. most_steps."""
        here_NE1 = values_NE2L[:, :, 0, :1] != ABSENT
        encoded_NEH = (
            self.encoder(features(values_NE2L).to(self.dtype)) * here_NE1
        )  # above 0: an absent example is never the largest
        mean_NH = encoded_NEH.sum(1) / here_NE1.sum(1).clamp(min=1)
        left_NS = nn.functional.one_hot(left_N.long() - 1, self.config.most_steps).to(encoded_NEH.dtype)
        logits_NA: Tensor = self.last(self.head(torch.cat([mean_NH, encoded_NEH.amax(1), left_NS], -1)))
        return logits_NA


def features(values_NE2L: Tensor) -> Tensor:
    """float32 [N, E, width]: what the network knows of every example."""
    there = values_NE2L != PAD
    value = values_NE2L.masked_fill(~there, 0).float()
    of_numbers = torch.stack(
        [
            there.float(),
            (value / 10).clamp(-2, 2),
            value.sign() * value.abs().log1p() / 4,
            (values_NE2L.remainder(2) * there).float(),
        ],
        -1,
    )
    lengths_NE2 = there.float().mean(-1)
    now, goal = values_NE2L.unbind(2)
    equal_NELL = (now[..., :, None] == goal[..., None, :]) & there[:, :, 0, :, None]
    return torch.cat([of_numbers.flatten(2), lengths_NE2, equal_NELL.flatten(2).float()], -1)
