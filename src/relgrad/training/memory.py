"""What to lower where a loop has too little memory (core/memory.py)."""

from __future__ import annotations

from relgrad.training.settings import GrpoSettings

OPTIMIZER = "AdamW keeps two numbers for every trained weight: train an adapter (policy.lora), or a smaller model"


def drawing(settings: GrpoSettings) -> str:
    """For drawing a generation batch."""
    return (
        f"Lower grpo.num_prompts ({settings.num_prompts}) or grpo.num_generations ({settings.num_generations}), or let shorter "
        "texts be written (policy.max_completion_length, or policy.block_size)"
    )


def scoring(settings: GrpoSettings) -> str:
    """For scoring and back-propagating chunks of a batch."""
    return (
        f"Lower grpo.micro_batch_tokens ({settings.micro_batch_tokens}); where that is less than the longest completion already, "
        "let shorter texts be written, set policy.gradient_checkpointing, or train an adapter (policy.lora)"
    )


def learning(batch_size: int, pieces: int) -> str:
    """For a supervised step of `batch_size` examples in so many pieces."""
    return (
        f"Raise sft.gradient_accumulation_steps ({pieces}), which divides sft.batch_size ({batch_size}), or lower that; else leave "
        "long examples out, set policy.gradient_checkpointing, or train an adapter (policy.lora)"
    )
