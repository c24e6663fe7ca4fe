"""``python -m tools.fp16``: what fp16 does to a model: its range, and the noise of a log-ratio.

``noise`` is H1 at one KL alone, with few sequences, for bf16 and the two recipes in fp16. ``range``
says how near the model comes to both ends of fp16's range.

The forward and one PPO gradient are computed in FP32, on the sequences that H6 learns from. The
largest output of a module is set against fp16's largest number. Gradients are counted as fp16
would hold them, at each loss scale: those that become 0, that lose bits, that overflow.

The hazard. Sums and products between modules, such as the residual stream and the input of an MLP's
down projection, are no module's output. Nobody looks at them: they may be larger.

Most gradients of logits are tiny, and they stay so in the sum over a larger batch: the
loss is a mean over its tokens. So the record says how many tokens the gradient is the mean of.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from precision_lib.environment import set_environment
from precision_lib.exit_codes import OK, USAGE
from precision_lib.forensics.budget import Budget, budget
from precision_lib.forensics.frozen import freeze_and_read
from precision_lib.forensics.h6.updates import Batch, batch_of, minibatch, policy_gradient
from precision_lib.forensics.hypotheses import HYPOTHESES
from precision_lib.forensics.hypothesis import Given
from precision_lib.formats import FORMATS
from precision_lib.jsonio import write_json
from precision_lib.matrix import get_configuration
from precision_lib.models.loading import CheckpointError, working_copy
from precision_lib.models.pipeline import Pipeline, load_pipeline
from precision_lib.record.codec import encode
from precision_lib.record.context import run_context
from precision_lib.runtime import deterministic
from precision_lib.trajectories.prompt_file import PromptsError, asking

SCHEMA = "precision-forensics fp16 1"
#: Without a scale, and with that at which torch's GradScaler begins.
SCALES = (1.0, 65536.0)
FP16 = FORMATS["fp16"]
#: True KL to the reference, nats per token; recipes whose noise there is measured.
KL, RECIPES = 1e-4, ("bf16_pure", "fp16_pure", "fp16_fp32_kl")
#: Gradients: of weights, of a module's output, of the logits alone.
KINDS = ("parameters", "activations", "logits")


@dataclass
class Largest:
    """The largest absolute value that was seen, and the module that gave it."""

    value: float = 0.0
    module: str = ""

    def see(self, value: Tensor, module: str) -> None:
        size = float(value.detach().abs().max()) if value.numel() else 0.0
        if not size <= self.value:  # NaN is larger than everything
            self.value, self.module = size, module


@dataclass
class Held:
    """Gradients of one kind as fp16 holds them; counts by loss scale, of those that are not 0."""

    n: int = 0
    largest: Largest = field(default_factory=Largest)
    zero: dict[float, int] = field(default_factory=lambda: dict.fromkeys(SCALES, 0))
    subnormal: dict[float, int] = field(default_factory=lambda: dict.fromkeys(SCALES, 0))
    overflow: dict[float, int] = field(default_factory=lambda: dict.fromkeys(SCALES, 0))

    def see(self, gradient: Tensor, name: str) -> None:
        some = gradient.detach().flatten().float()
        some = some[some != 0]
        self.n += some.numel()
        self.largest.see(some, name)
        for scale in SCALES:
            held = (some * scale).half().abs()
            zero = held == 0
            self.zero[scale] += int(zero.sum())
            self.subnormal[scale] += int(((held < FP16.smallest_normal) & ~zero).sum())
            self.overflow[scale] += int((~held.isfinite()).sum())

    def as_json(self) -> dict[str, Any]:
        scales = [
            {
                "loss_scale": scale,
                "zero_frac": self.zero[scale] / self.n,
                "subnormal_frac": self.subnormal[scale] / self.n,
                "overflow": self.overflow[scale],
            }
            for scale in SCALES
        ]
        return {"n": self.n, "largest": vars(self.largest), "scales": scales}


def measured(model: Any, batch: Batch) -> dict[str, Any]:
    """The range of a forward, and of the gradient of PPO's surrogate; JSON-ready.

    Args:
        model: FP32 causal LM, unchanged. batch: on its device.

    Raises:
        ValueError: no gradient differs from 0, so that nothing was counted.
    """
    outputs, held = Largest(), {kind: Held() for kind in KINDS}
    working = working_copy(model).requires_grad_(True)
    head = working.get_output_embeddings()
    for name, module in working.named_modules():
        if not any(True for _ in module.children()):
            kind = "logits" if module is head else "activations"
            module.register_forward_hook(_seeing(outputs, held[kind], name))
    with deterministic(native_products=model.device.type != "cpu"):
        gradient = policy_gradient(working, batch)
    for (name, _), of_parameter in zip(working.named_parameters(), gradient, strict=True):
        held["parameters"].see(of_parameter, name)
    if not all(kind.n for kind in held.values()):
        raise ValueError("no gradient differs from 0: in every group all rewards are equal")
    return {
        "largest_output": vars(outputs),
        "largest_finite": FP16.largest,
        "tokens": int(batch.mask.sum()),
        "gradients": {kind: of_kind.as_json() for kind, of_kind in held.items()},
    }


def _seeing(outputs: Largest, held: Held, name: str) -> Callable[..., None]:
    """A forward hook that looks at a module's output now, and at its gradient later."""

    def hook(_module: Any, _given: Any, output: Any) -> None:
        for tensor in output if isinstance(output, tuple) else (output,):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                outputs.see(tensor, name)
                if tensor.requires_grad:
                    tensor.register_hook(lambda gradient: held.see(gradient, name))

    return hook


def noise_of(pipeline: Pipeline, asked: Budget) -> dict[str, Any]:
    """H1's metrics of :data:`RECIPES` at :data:`KL`, on the shorter responses; JSON-ready."""
    usual = asked.settings["H1"]
    settings = replace(usual, target_kls=(KL,), seq_lengths=usual.seq_lengths[:1])
    configurations = tuple(map(get_configuration, RECIPES))
    study = HYPOTHESES["H1"].open(Given(pipeline, settings, configurations, None))
    return {
        "kl": KL,
        "response_tokens": settings.seq_lengths[0],
        "noise": {c.name: encode(study.cell(c).metrics) for c in configurations},
    }


def range_of(pipeline: Pipeline, asked: Budget) -> dict[str, Any]:
    """The range of the policy in the first step of H6; JSON-ready."""
    settings = asked.settings["H6"]
    with tempfile.TemporaryDirectory() as directory:
        frozen = freeze_and_read(pipeline, asked.freeze, Path(directory))
    batch, size = batch_of(frozen, settings.prompts)
    rows = minibatch(0, len(batch.tokens) // size, size, settings.sequences)
    model = pipeline.policy.model
    return measured(model, batch.rows(rows).to(model.device))


WHAT = {"noise": noise_of, "range": range_of}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the record."""
    set_environment()
    parser = argparse.ArgumentParser(prog="python -m tools.fp16")
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("--model", default="embedded", help="hub name or directory of a causal LM")
    parser.add_argument("--prompts", type=Path, metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="the quick budget")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    options = parser.parse_args(arguments)
    try:
        pipeline = load_pipeline(options.model, "embedded", None, "cpu", None)
        pipeline = asking(pipeline, options.prompts, None)
        asked = budget(quick=options.quick, seed=options.seed)
        record = {
            "schema": SCHEMA,
            "what": options.what,
            "context": run_context("cpu", options.seed) | {"model": pipeline.policy.name},
            **WHAT[options.what](pipeline, asked),
        }
        write_json(options.json, record)
    except (CheckpointError, PromptsError, OSError, ValueError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return USAGE
    return OK


if __name__ == "__main__":
    sys.exit(main())
