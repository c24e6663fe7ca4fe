"""A policy and a reward model on disk, so small that a PPO run with its evaluation takes a second.

They are loaded by name, as a process elsewhere has to.
"""

from pathlib import Path

from precision_lib.sweep.plan import ModelNames
from tests.unit.small_pipelines import random_checkpoint, random_reward


def saved_models(directory: Path) -> ModelNames:
    """Save both below ``directory``; what a sweep is told of them."""
    for name, made in (("policy", random_checkpoint()), ("reward", random_reward())):
        made.model.save_pretrained(directory / name)
        made.tokenizer.save_pretrained(directory / name)
    return ModelNames(str(directory / "policy"), str(directory / "reward"))
