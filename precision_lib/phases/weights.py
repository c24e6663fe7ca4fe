"""Manifests of the models that a phase scored with, beside its record."""

from pathlib import Path

from precision_lib.matrix import PrecisionConfig
from precision_lib.models.pipeline import Pipeline
from precision_lib.trajectories.working_copy import WorkingCopy
from precision_lib.weights import manifest


def write_manifests(pipeline: Pipeline, configuration: PrecisionConfig, directory: Path) -> None:
    """Write ``weights_policy.json``, ``weights_reference.json`` and ``weights_reward.json``.

    Each holds the weights in the configuration's formats, cast as scoring casts them.

    Raises:
        OSError: a file cannot be written.
    """
    working = WorkingCopy()
    for component, model, fmt in (
        ("policy", pipeline.policy.model, configuration.forward_format("policy")),
        ("reference", pipeline.reference.model, configuration.forward_format("reference")),
        ("reward", pipeline.reward.model, configuration.reward),
    ):
        label = f"{configuration.name}, {component}"
        manifest(working.of(model, fmt), directory / f"weights_{component}.json", label=label)
