"""The state of a run on disk: one file, whole or not there, that continues to the same bits.

The hazards. A state that is saved in place is half a state after a kill; Adam's moments left out
resume with another step size; a resumed run with another learning rate, model or torch release is
not the run that was begun; and a file that was cut or altered must not be trained on. So the state
is one safetensors file under a temporary name, synced and renamed, with the run's identity and a
SHA-256 of its tensors in its header; random numbers need no state, they follow from (seed, step).
"""

import hashlib
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from precision_lib.training.failures import Watch
from precision_lib.training.trainer import Run

SCHEMA = "precision-forensics/ppo-state/1"
STATE = "state.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")


class StateError(RuntimeError):
    """A state cannot be used; the message names the file, what is wrong and what to do."""


def identity(run: Run) -> dict[str, Any]:
    """What a resumed run has to share with the one that it continues."""
    pipeline, settings = run.models.pipeline, run.settings
    return {
        "configuration": {"name": run.models.configuration.name}
        | run.models.configuration.components,
        "settings": settings.identity,
        "models": {
            "policy": pipeline.policy.sha256,
            "reference": pipeline.reference.sha256,
            "reward": pipeline.reward.sha256,
            "value_head": pipeline.value_head.sha256 if pipeline.value_head else None,
        },
        "torch": torch.__version__,
        "device": run.weights.master.device.type,
    }


def write_state(directory: Path, run: Run) -> None:
    """Write the state between two steps.

    Raises:
        OSError: it cannot be written; the state before it, if any, is untouched.
    """
    moments = run.weights.optimizer.state.get(run.weights.master, {})
    tensors = {"master": run.weights.master}
    tensors |= {name: moments[name] for name in MOMENTS if name in moments}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {
        "schema": SCHEMA,
        "identity": identity(run),
        "step": run.step,
        "adam_steps": int(moments.get("step", 0)),
        "kl_coefficient": run.kl_coefficient,
        "skipped": run.skipped,
        "watch": asdict(run.watch)["beyond"],
        "observed": run.observed,
        "sha256": digest(tensors),
    }
    _save(directory / STATE, tensors, {"state": json.dumps(header, sort_keys=True)})


def _save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
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


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, shapes and bytes, in the order of the names."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        found.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def read_state(directory: Path, run: Run) -> bool:
    """Put ``run``, freshly opened, where the state in ``directory`` was; False if there is none.

    Raises:
        StateError: cut, altered, of another schema, or of another run.
    """
    path = directory / STATE
    if not path.is_file():
        return False
    advice = "start again without --resume in another --output_dir"
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["state"])
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise StateError(f"{path} is no whole state of a run ({error}); {advice}") from None
    if header.get("schema") != SCHEMA:
        raise StateError(f"{path} has schema {header.get('schema')!r}, not {SCHEMA!r}; {advice}")
    differing = _differences(header["identity"], json.loads(json.dumps(identity(run))))
    if differing:
        raise StateError(
            f"{path} belongs to another run: {'; '.join(differing)}; give what it was begun with, "
            "or another --output_dir"
        )
    if digest(tensors) != header["sha256"]:
        raise StateError(f"{path} was altered: its tensors do not have its SHA-256; {advice}")
    _restore(run, header, tensors)
    return True


def _restore(run: Run, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    weights = run.weights
    with torch.no_grad():
        weights.master.copy_(tensors["master"])
    weights.cast()
    if header["adam_steps"]:
        state: dict[str, Tensor] = {
            name: tensors[name].to(weights.master.device) for name in MOMENTS
        }
        state["step"] = torch.tensor(float(header["adam_steps"]), device=weights.master.device)
        weights.optimizer.state[weights.master] = state
    run.step, run.kl_coefficient = header["step"], header["kl_coefficient"]
    run.skipped, run.observed = header["skipped"], header["observed"]
    run.watch = Watch(dict(header["watch"]))


def _differences(stored: Any, wanted: Any, name: str = "") -> list[str]:
    if isinstance(stored, dict) and isinstance(wanted, dict):
        return [
            difference
            for key in sorted(stored.keys() | wanted.keys())
            for difference in _differences(
                stored.get(key), wanted.get(key), f"{name}.{key}" if name else key
            )
        ]
    return [] if stored == wanted else [f"{name} was {stored!r} and is {wanted!r}"]
