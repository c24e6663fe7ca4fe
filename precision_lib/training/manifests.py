"""Manifests of the weights of a run: of the trainer's masters, and of the copy that samples.

Two files for each state, ``weights_trainer_000050.json`` and ``weights_rollout_000050.json``: what
steps before 50 have made of the weights. Each tensor says which share of its 16-bit codes changed
since the manifest before, which is named by its hash. The files follow from the run alone.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from precision_lib.jsonio import write_json
from precision_lib.training.trainer import Run
from precision_lib.weights import manifest

PATTERN = "weights_*.json"
SIDES = ("trainer", "rollout")
#: Formats of torch whose numbers are 16-bit codes; others are cast to bf16 to be counted.
CODES = {torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass
class WeightSeries:
    """What the next manifests are compared with.

    Attributes:
        step: of the last ones; None before the first.
        codes: [P] 16-bit codes of the last ones, on the host.
        digests: side -> tensor -> SHA-256 in the last ones.
    """

    step: int | None = None
    codes: Tensor | None = None
    digests: dict[str, dict[str, str]] = field(default_factory=dict)

    def add(self, run: Run, directory: Path | None) -> None:
        """Take the weights of ``run``; write their manifests into ``directory``, if any.

        Raises:
            OSError: a file cannot be written.
        """
        if run.step == self.step:
            return
        made = _manifests(run)
        codes = run.weights.low.detach()
        codes = codes if codes.dtype in CODES else codes.to(torch.bfloat16)
        codes = codes.cpu().clone()
        if self.codes is not None:
            self._add_changes(run, made, codes)
        if directory is not None:
            for side, content in made.items():
                write_json(directory / f"weights_{side}_{run.step:06d}.json", content)
        self.step, self.codes = run.step, codes
        self.digests = {
            side: {name: facts["sha256"] for name, facts in content["tensors"].items()}
            for side, content in made.items()
        }

    def _add_changes(self, run: Run, made: dict[str, dict[str, Any]], codes: Tensor) -> None:
        assert self.codes is not None
        fmt, place = CODES[codes.dtype], 0
        for name, parameter in run.weights.golden.named_parameters():
            part = slice(place, place + parameter.numel())
            place = part.stop
            share = float((codes[part] != self.codes[part]).double().mean())
            for side, content in made.items():
                facts = content["tensors"][name]
                if facts["format"] in (fmt, "fp32") and (fmt == "bf16" or side == "rollout"):
                    since = self.digests[side][name]
                    facts["changed"] = {"since": since, "format": fmt, "share": share}


def _manifests(run: Run) -> dict[str, dict[str, Any]]:
    """Side -> manifest of its weights; the value head goes with the trainer's."""
    weights = run.weights
    head = {"v_head.weight": weights.head_weight, "v_head.bias": weights.head_bias}
    models = {
        "trainer": dict(weights.golden.named_parameters()) | head,
        "rollout": dict(weights.working.named_parameters()),
    }
    name, config = run.models.configuration.name, weights.golden.config
    return {
        side: manifest(models[side], config=config, step=run.step, label=f"{name}, {side}")
        for side in SIDES
    }


def manifest_names(directory: Path) -> list[str]:
    """Names of the manifests in a run's directory."""
    return sorted(path.name for path in directory.glob(PATTERN))


def remove_manifests(directory: Path, after: int) -> None:
    """Remove the manifests of later steps than ``after``: they come again."""
    for name in manifest_names(directory):
        if int(name.removesuffix(".json").rsplit("_", 1)[-1]) > after:
            (directory / name).unlink()
