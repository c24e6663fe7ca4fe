"""The state of a run on disk: one file, whole or not there, that continues to the same bits.

The hazard. A resumed run whose Adam moments, learning rate, model, torch release or GPU differ is
another run. So the state is one safetensors file, written under a temporary name and renamed, with
the run's identity in its header and a SHA-256 of header and tensors. Random numbers need no state:
they follow from (seed, step).
"""

import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from precision_lib.jsonio import Json
from precision_lib.matrix import PrecisionConfig
from precision_lib.models.pipeline import Pipeline
from precision_lib.training.failures import Watch
from precision_lib.training.settings import PPOSettings
from precision_lib.training.trainer import Run

SCHEMA = "precision-forensics/ppo-state/2"
STATE = "state.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")
ADVICE = "start again without --resume in another --output_dir"


class StateError(RuntimeError):
    """A state cannot be used; the message names the file, what is wrong and what to do."""


def identity(
    pipeline: Pipeline, configuration: PrecisionConfig, settings: PPOSettings
) -> dict[str, Json]:
    """What a resumed run has to share with the one that it continues; plain JSON values."""
    return asked_for(configuration, settings) | {
        "models": {
            "policy": pipeline.policy.sha256,
            "reference": pipeline.reference.sha256,
            "reward": pipeline.reward.sha256,
            "value_head": pipeline.value_head.sha256 if pipeline.value_head else None,
        },
        "torch": str(torch.__version__),
        **_place(pipeline.policy.model.device),
    }


def _place(device: torch.device) -> dict[str, str]:
    """Type of the device and, of a GPU, the card's name: another card rounds in another order."""
    if device.type != "cuda":
        return {"device": device.type}
    return {"device": "cuda", "card": torch.cuda.get_device_name(device)}


def asked_for(configuration: PrecisionConfig, settings: PPOSettings) -> dict[str, Json]:
    """The part of :func:`identity` that needs neither models nor a machine."""
    return {
        "configuration": {"name": configuration.name} | configuration.components,
        "settings": settings.identity,
    }


@dataclass(frozen=True)
class Header:
    """What a state says of its run.

    Attributes:
        step: the next one. adam_steps: optimizer steps so far.
        identity: of the run. kl_coefficient, skipped, watch, observed: as :class:`Run` has them.
    """

    identity: dict[str, Json]
    step: int
    adam_steps: int
    kl_coefficient: float
    skipped: int
    watch: dict[str, int]
    observed: dict[str, str]


@dataclass(frozen=True)
class State:
    """A state as it was written: header and tensors by name."""

    header: Header
    tensors: dict[str, Tensor]

    @property
    def step(self) -> int:
        """The next step."""
        return self.header.step


def write_state(directory: Path, run: Run) -> None:
    """Write the state between two steps.

    Raises:
        OSError: it cannot be written; the state before it, if any, is untouched.
    """
    moments = run.weights.optimizer.state.get(run.weights.master, {})
    tensors = {"master": run.weights.master}
    tensors |= {name: moments[name] for name in MOMENTS if name in moments}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = Header(
        identity=identity(run.models.pipeline, run.models.configuration, run.settings),
        step=run.step,
        adam_steps=int(moments.get("step", 0)),
        kl_coefficient=run.kl_coefficient,
        skipped=run.skipped,
        watch=run.watch.beyond,
        observed=run.observed,
    )
    text = json.dumps(asdict(header), sort_keys=True)
    metadata = {"schema": SCHEMA, "state": text, "sha256": digest(tensors, text)}
    _save(directory / STATE, tensors, metadata)


def _save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as directory:
        temporary = Path(directory) / path.name
        try:
            save_file(tensors, temporary, metadata=metadata)
        except SafetensorError as error:  # its own kind for a full disk
            raise OSError(f"cannot write {path}: {error}") from None
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)


def digest(tensors: dict[str, Tensor], text: str = "") -> str:
    """SHA-256 of ``text``, then names, shapes and bytes in the order of the names."""
    digest_of_all = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest_of_all.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest_of_all.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return digest_of_all.hexdigest()


def read_state(directory: Path, wanted: dict[str, Json]) -> State | None:
    """The state in ``directory``, None if there is none.

    ``wanted``: :func:`identity` of the run that is to go on from it.

    Raises:
        StateError: cut, altered, of another schema, or of another run.
    """
    path = directory / STATE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise StateError(f"{path} is no whole state of a run ({error}); {ADVICE}") from None
    if metadata.get("schema") != SCHEMA:
        raise StateError(f"{path} has schema {metadata.get('schema')!r}, not {SCHEMA!r}; {ADVICE}")
    text = metadata.get("state", "")
    if digest(tensors, text) != metadata.get("sha256"):
        raise StateError(f"{path} was altered: it does not have its own SHA-256; {ADVICE}")
    state = State(Header(**json.loads(text)), tensors)
    check_identity(path, state.header.identity, wanted)
    return state


def check_identity(path: Path, stored: dict[str, Json], wanted: dict[str, Json]) -> None:
    """Refuse what was made by another run.

    Raises:
        StateError: the message names ``path`` and each difference.
    """
    differing = _differences(stored, wanted)
    if differing:
        raise StateError(
            f"{path} belongs to another run: {'; '.join(differing)}; give what it was begun with, "
            "or another --output_dir"
        )


def _differences(stored: Json, wanted: Json, name: str = "") -> list[str]:
    if isinstance(stored, dict) and isinstance(wanted, dict):
        return [
            difference
            for key in sorted(stored.keys() | wanted.keys())
            for difference in _differences(
                stored.get(key), wanted.get(key), f"{name}.{key}" if name else key
            )
        ]
    return [] if stored == wanted else [f"{name} was {stored!r} and is {wanted!r}"]


def restore(run: Run, state: State) -> None:
    """Put ``run``, freshly opened, where ``state`` was."""
    weights, header = run.weights, state.header
    with torch.no_grad():
        weights.master.copy_(state.tensors["master"])
    weights.cast()
    if header.adam_steps:
        device = weights.master.device
        moments = {name: state.tensors[name].to(device) for name in MOMENTS}
        steps = torch.tensor(float(header.adam_steps), device=device)
        weights.optimizer.state[weights.master] = moments | {"step": steps}
    run.step, run.kl_coefficient = header.step, header.kl_coefficient
    run.skipped, run.observed = header.skipped, header.observed
    run.watch = Watch(dict(header.watch))
