"""One job, two systems: relgrad's loop and TRL's trainer built from the same description, their settings side by side."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from relgrad.core.errors import RelgradError
from relgrad.core.randomness import draw_epochs
from relgrad.core.ranks import ALONE, Ranks
from relgrad.core.types import Prompt
from relgrad.objectives.losses import PolicyLoss
from relgrad.policies import autoregressive
from relgrad.rewards.combine import NamedReward, RewardSet
from relgrad.training.grpo import Grpo, GrpoSettings

LORA_R, LORA_ALPHA = 16, 32
TUNED_COLUMNS = 256
"""Width of TRL's vocabulary tile in the arm `trl-tuned`; as shipped it is 32,768."""


@dataclass(frozen=True)
class Job:
    """What is trained, on what and how; everything else is the same constant for both systems below.

    exact_length  every completion has exactly `length` tokens: TRL is forbidden the end-of-sequence token
                  (`min_new_tokens`), relgrad is told to wait for an id beyond the vocabulary, which is never drawn
    trl_rows      completions in one of TRL's micro-batches (0: all), accumulated to the same optimizer step; relgrad cuts by
                  tokens, at its default of 8,192
    """

    model: str
    prompts: Sequence[Prompt]
    reward: Callable[..., list[float]]
    num_prompts: int
    num_generations: int
    length: int
    steps: int
    learning_rate: float
    seed: int = 0
    lora: bool = False
    exact_length: bool = False
    trl_rows: int = 0


def relgrad_loop(job: Job, ranks: Ranks = ALONE) -> Grpo:
    """relgrad's own loop, as a recipe would build it."""
    settings = autoregressive.Settings(
        model=job.model,
        lora=autoregressive.Lora(r=LORA_R, alpha=LORA_ALPHA) if job.lora else None,
        max_completion_length=job.length,
        engine="shared",
    )
    policy = autoregressive.build(settings, job.seed)
    if job.exact_length:
        policy.eos_ids = [policy.causal_lm.config.vocab_size]
    grpo = GrpoSettings(
        steps=job.steps,
        num_prompts=job.num_prompts,
        num_generations=job.num_generations,
        learning_rate=job.learning_rate,
        loss_type="dapo",
        scale_rewards="group",
        max_grad_norm=1.0,
    )
    rewards = RewardSet([NamedReward("reward", job.reward)], grpo.reward_timeout)
    return Grpo(policy, job.prompts, rewards, PolicyLoss(loss_type="dapo"), grpo, seed=job.seed, ranks=ranks)


def trl_trainer(job: Job, *, tuned: bool, callbacks: Sequence[Any] = ()) -> Any:
    """TRL's GRPOTrainer on the same prompts in the same order, without gradient checkpointing, logging to nowhere."""
    trl = import_trl()
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

    if tuned:
        tune()
    rows = job.num_prompts * job.num_generations
    micro_rows = job.trl_rows or rows
    ordered = draw_epochs(job.prompts, 0, job.steps * job.num_prompts, job.seed)
    arguments = trl.GRPOConfig(
        output_dir=tempfile.mkdtemp(prefix="trl-"),
        max_steps=job.steps,
        per_device_train_batch_size=micro_rows,
        gradient_accumulation_steps=rows // micro_rows,
        num_generations=job.num_generations,
        max_completion_length=job.length,
        generation_kwargs={"min_new_tokens": job.length} if job.exact_length else None,
        learning_rate=job.learning_rate,
        loss_type="dapo",
        scale_rewards="group",
        beta=0.0,
        num_iterations=1,
        shuffle_dataset=False,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        weight_decay=0.0,
        max_grad_norm=1.0,
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        seed=job.seed,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        use_vllm=False,
    )
    lora = LoraConfig(
        task_type="CAUSAL_LM", r=LORA_R, lora_alpha=LORA_ALPHA, lora_dropout=0.0, target_modules="all-linear"
    )
    trainer = trl.GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(job.model, dtype="float32"),
        reward_funcs=job.reward,
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": p.text, **p.columns} for p in ordered]),
        processing_class=AutoTokenizer.from_pretrained(job.model, padding_side="left"),
        peft_config=lora if job.lora else None,
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def import_trl() -> Any:
    """The trl package. Raises RelgradError with the install line."""
    try:
        import trl
    except ImportError as error:
        raise RelgradError(f"the benchmarks compare with TRL: pip install 'relgrad[bench]' ({error})") from None
    from transformers.utils import logging

    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return trl


def tune() -> None:
    """Lower TRL's vocabulary tile from 32,768 to TUNED_COLUMNS columns, which fits a CPU's caches."""
    from trl.trainer import utils

    if not hasattr(utils, "_CHUNKED_LOGPROB_CHUNK_SIZE"):
        raise RelgradError(
            "this TRL has no _CHUNKED_LOGPROB_CHUNK_SIZE to tune; the benchmarks are written for trl 1.16"
        )
    utils._CHUNKED_LOGPROB_CHUNK_SIZE = TUNED_COLUMNS
