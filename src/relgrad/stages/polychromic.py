"""The stage that trains a policy on the task's own targets and keeps what it writes diverse: sections `sft` and `polychromic`."""

from __future__ import annotations

from relgrad.core.protocols import Policy
from relgrad.stages import sft
from relgrad.stages.kind import Kind, Materials, StageParts
from relgrad.text.distance import distances_of
from relgrad.training.polychromic import PolychromicSettings, SetDiversity


class Settings(sft.Settings):
    """A supervised stage with a term for the diversity of a prompt's completions."""

    polychromic: PolychromicSettings = PolychromicSettings()


def build(stage: Settings, materials: Materials) -> StageParts:
    """As the supervised stage is built; its loop has the further term. An encoder that is not there is refused first."""
    settings = stage.polychromic
    distances = distances_of(settings.distance, settings.n, settings.encoder)

    def term(policy: Policy) -> SetDiversity:
        return SetDiversity(policy, settings, distances, seed=stage.seed, ranks=materials.ranks)

    return sft.build_beside(stage, materials, term)


def describe(stage: Settings) -> str:
    settings = stage.polychromic
    often = "every step" if settings.every == 1 else f"every {settings.every} steps"
    return f"{sft.describe(stage)}, diversity x {settings.weight:g} {often}"


KIND = Kind(loop="sft", build=build, describe=describe)
