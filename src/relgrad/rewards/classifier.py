"""A sequence classifier of transformers as a judge: how sure it is that a text has one of its labels."""

from __future__ import annotations

import inspect
import string
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, field_validator

from relgrad.core.errors import RelgradError
from relgrad.core.protocols import Reward
from relgrad.core.settings import NamesFiles, Strict
from relgrad.core.types import Output, Prompt, Score
from relgrad.networks.causal import load as causal
from relgrad.networks.weights import device
from relgrad.rewards._columns import unscored


class Settings(Strict):
    """The classifier, what it reads and which of its outputs is the score.

    label       name or index; None: the second of two labels, or the only output
    score       "probability": softmax over the labels; sigmoid where there is one output, or where several labels may be
                true at once (problem_type multi_label_classification). "logit": the output itself
    template    the text as the classifier reads it, with {completion} and, if wanted, {prompt}
    max_length  tokens; a longer text is cut by the tokenizer. None: the model's own limit
    batch_size  rows of one forward pass; does not change the scores
    """

    model: Annotated[str, NamesFiles(or_hub=True)]
    tokenizer: Annotated[str | None, NamesFiles(or_hub=True)] = None
    label: str | int | None = None
    score: Literal["probability", "logit"] = "probability"
    template: str = "{completion}"
    max_length: int | None = Field(None, ge=1)
    batch_size: int = Field(16, ge=1)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    trust_remote_code: bool = False
    device: str = "auto"

    @field_validator("template")
    @classmethod
    def _names(cls, template: str) -> str:
        named = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
        if "completion" not in named or not named <= {"completion", "prompt"}:
            raise ValueError(
                f"template={template!r} must name {{completion}} and may name {{prompt}}, nothing else; write a literal "
                "brace twice"
            )
        return template


def build(settings: Settings) -> Reward:
    """Scores are probabilities, or logits of any size; the part `truncated` is 1 where the text was cut.

    A text without any token is unscored. Raises RelgradError for a model that cannot be loaded or has no classification
    head, and for a label that it does not have.
    """
    judge = Classifier(settings)

    def classifier(prompt: Prompt, outputs: Sequence[Output]) -> list[Score]:
        texts = [settings.template.format(completion=output.text, prompt=prompt.text) for output in outputs]
        # equal texts are scored once: beside other rows they could differ by rounding, and a flat group would not be flat
        distinct = list(dict.fromkeys(texts))
        score_of = dict(zip(distinct, judge(distinct), strict=True))
        return [score_of[text] for text in texts]

    return classifier


class Classifier:
    """Texts in, scores out. Padding is on the right; a model without a padding id is run row by row."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.model = load_classifier(settings)
        self.tokenizer: Any = causal.load_tokenizer(
            settings.tokenizer or settings.model, trust_remote_code=settings.trust_remote_code
        )
        self.device = device.choose(settings.device)
        self.model.to(self.device)
        self.label = label_index(self.model.config, settings.label)
        self.pad_id = self.model.config.get_text_config().pad_token_id
        self.names = inspect.signature(self.model.forward).parameters.keys()
        self.entries = self.model.get_input_embeddings().num_embeddings
        self.limit = self._limit()
        single = self.model.config.num_labels == 1
        self.sigmoid = single or self.model.config.problem_type == "multi_label_classification"
        if settings.score == "probability" and self.model.config.problem_type == "regression":
            raise RelgradError(
                f"reward 'classifier': model {settings.model!r} is a regression, its output is no probability; set score: "
                "logit"
            )

    def _limit(self) -> int | None:
        """The most tokens of a row: the smallest of the setting's, the tokenizer's and the model's."""
        own = causal.context(self.model.config.get_text_config())
        for name, module in self.model.named_modules():  # RoBERTa's positions start after the padding id
            if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
                own = module.num_embeddings - module.padding_idx - 1
        limits = [n for n in (own, self.tokenizer.model_max_length) if n]
        if self.settings.max_length is not None and self.settings.max_length > min(limits):
            raise RelgradError(
                f"reward 'classifier': max_length={self.settings.max_length}, but model {self.settings.model!r} takes "
                f"{min(limits)} tokens"
            )
        return self.settings.max_length or min(limits)

    def __call__(self, texts: Sequence[str]) -> list[Score]:
        encoded = [self._encode(text) for text in texts]
        rows = [row for row, _ in encoded if row["input_ids"]]
        size = self.settings.batch_size if self.pad_id is not None else 1
        values = iter([v for start in range(0, len(rows), size) for v in self._forward(rows[start : start + size])])
        return [
            Score(next(values), {"truncated": float(cut)}) if row["input_ids"] else unscored("a text without tokens")
            for row, cut in encoded
        ]

    def _encode(self, text: str) -> tuple[dict[str, list[int]], bool]:
        """(what the tokenizer makes of a text, whether it was cut)."""
        row = dict(self.tokenizer(text, verbose=False))
        cut = self.limit is not None and len(row["input_ids"]) > self.limit
        if cut:
            row = dict(self.tokenizer(text, truncation=True, max_length=self.limit))
        if (largest := max(row["input_ids"], default=0)) >= self.entries:
            raise RelgradError(
                f"reward 'classifier': the tokenizer gives id {largest}, but model {self.settings.model!r} has "
                f"{self.entries} ids; name the model's own tokenizer"
            )
        return row, cut

    @torch.inference_mode()
    def _forward(self, rows: Sequence[dict[str, list[int]]]) -> list[float]:
        inputs = {
            name: torch.nn.utils.rnn.pad_sequence(
                [torch.tensor(row[name]) for row in rows],
                batch_first=True,
                padding_value=self.pad_id or 0 if name == "input_ids" else 0,
            ).to(self.device)
            for name in rows[0].keys() & self.names  # a tokenizer may offer token types to a model that has none
        }
        logits_BC = self.model(**inputs).logits.float()
        if self.settings.score == "probability":
            logits_BC = logits_BC.sigmoid() if self.sigmoid else logits_BC.softmax(-1)
        return logits_BC[:, self.label].tolist()


def load_classifier(settings: Settings) -> Any:
    """The model in eval mode, on the CPU. Raises RelgradError, also where weights would be left random."""
    from transformers import AutoModelForSequenceClassification

    source = causal.resolve(settings.model)
    causal.quiet()
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            source,
            dtype=causal.DTYPES[settings.dtype],
            trust_remote_code=settings.trust_remote_code,
            use_safetensors=True,  # the other format is a pickle
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        raise RelgradError(
            f"reward 'classifier': model {settings.model!r} could not be loaded as a sequence classifier (weights must be "
            f"safetensors): {str(error).splitlines()[0]}"
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise RelgradError(
            f"reward 'classifier': model {settings.model!r} is no trained sequence classifier: it has no "
            f"{', '.join(missing[:3])}"
        )
    return model.eval()


def label_index(config: Any, label: str | int | None) -> int:
    """Which output a `label` names. Raises RelgradError naming the labels there are."""
    names = [str(config.id2label[i]) for i in range(config.num_labels)]
    labels = ", ".join(f"{name!r} ({i})" for i, name in enumerate(names))
    if label is None:
        if len(names) > 2:
            raise RelgradError(f"reward 'classifier': the model has {len(names)} labels; set label to one of: {labels}")
        return len(names) - 1
    if label in names:
        return names.index(str(label))
    if isinstance(label, int) and 0 <= label < len(names):
        return label
    raise RelgradError(f"reward 'classifier': the model has no label {label!r}; its labels are {labels}")
