"""A sample of masked text as a prompt, wherever the sample comes from."""

from __future__ import annotations

import numpy as np

from relgrad.core.types import Prompt
from relgrad.text.vocabulary import Vocabulary


def masked_prompt(
    ids: np.ndarray,
    masked: np.ndarray,
    labels: np.ndarray,
    vocabulary: Vocabulary,
    index: int,
    strategy: str,
    width: int,
) -> Prompt:
    """One sample, without its padding, as the policy, the rewards and the judge read it.

    `strategy` is the type of its mask, `width` how many ids it has with its padding.
    """
    columns = {
        "truth": vocabulary.decode(ids.tolist()),
        "truth_ids": ids.tolist(),
        "masked_ids": masked.tolist(),
        "mask_id": vocabulary.mask_id,
        "label_ids": labels.tolist(),
        "mask_ratio": float((masked == vocabulary.mask_id).mean()),
        "strategy": strategy,
        "width": width,
        "vocabulary": vocabulary.fingerprint,
    }
    return Prompt(vocabulary.decode(masked.tolist()), columns, index)
