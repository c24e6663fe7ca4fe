"""Where and with what a record was made: code, versions, device, settings."""

import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from precision_lib.jsonio import FLAT, KEY, Json
from precision_lib.record.codec import encode

_PACKAGES = (
    "rlhf-precision-forensics",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "pytest",
    "hypothesis",
    "pytest-benchmark",
    "pytest-json-report",
)
#: SHA, with ``+dirty`` behind it where files were changed: for code that was copied without git.
COMMIT_VARIABLE = "PRECISION_FORENSICS_COMMIT"
#: Environment variables that change what products mean, whatever the settings ask for: TF32 and
#: cuBLAS's emulation of wider formats (cuBLAS documentation, "Floating Point Emulation").
_OVERRIDES = (
    "NVIDIA_TF32_OVERRIDE",
    "CUBLAS_EMULATE_SINGLE_PRECISION",
    "CUBLAS_EMULATE_DOUBLE_PRECISION",
    "CUBLAS_EMULATION_STRATEGY",
    "CUBLAS_EMULATION_SPECIAL_VALUES_SUPPORT_MASK",
    "CUBLAS_FIXEDPOINT_EMULATION_MANTISSA_BIT_COUNT",
)
_CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_fp16", "asimd", "bf16", "sve")


@dataclass(frozen=True)
class Commit:
    """The commit of the code; None where it is not known."""

    sha: str | None = None
    dirty: bool | None = None


@dataclass(frozen=True)
class Device:
    """What computed; ``device_class`` names the baseline that it may be compared with."""

    device_class: str = field(default="", metadata={KEY: "class"})
    name: str = ""
    memory_bytes: int | None = None
    capability: str | None = None
    cuda: str | None = None
    driver: str | None = None


@dataclass(frozen=True)
class Model:
    """A checkpoint by its name and the SHA-256 of its FP32 weights."""

    name: str = ""
    sha256: str | None = None


@dataclass(frozen=True)
class FreezeSettings:
    """How trajectories were sampled; ``more`` holds the settings that no reader names."""

    batch_size: int | None = None
    num_batches: int | None = None
    max_new_tokens: int | None = None
    samples_per_prompt: int | None = None
    more: Mapping[str, Json] = field(default_factory=dict, metadata=FLAT)


@dataclass(frozen=True)
class Trajectories:
    """Frozen trajectories: settings, models by role, shard to its SHA-256."""

    settings: FreezeSettings = field(default_factory=FreezeSettings)
    models: Mapping[str, Model | None] = field(default_factory=dict)
    shards: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, Json] = field(default_factory=dict, metadata=FLAT)


@dataclass(frozen=True)
class RewardGroups:
    """Sequences that H2 compared, by prompt."""

    sequences: int
    prompts: int | None = None
    samples_per_prompt: tuple[int, ...] = ()
    seed: int | None = None


@dataclass(frozen=True)
class Context:
    """Where and with what a run was made; a field that a run does not state has its default.

    Attributes:
        settings, overrides: switches and environment variables that change numbers.
        budget: ``whole`` or ``quick``. probe, h3, h4: settings of the studies, compared as they
            are.
        prompts: their name, and count, template and digest of the user's own.
        weights_on_grid: format to the shares of weights on its grid and half-way.
        observed_formats: configuration to component to the format that it was seen to run in.
        more: what no reader names.
    """

    commit: Commit | None = None
    python: str | None = None
    platform: str | None = None
    versions: Mapping[str, str | None] = field(default_factory=dict)
    device: Device | None = None
    cpu: Mapping[str, Json] = field(default_factory=dict)
    threads: int | None = None
    omp_num_threads: str | None = None
    seed: int | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    overrides: Mapping[str, str | None] = field(default_factory=dict)
    checkpoint: Model | None = None
    reward_model: Model | None = None
    reward_groups: RewardGroups | None = None
    budget: Json = None
    probe: Json = None
    trajectories: Trajectories | None = None
    h3: Json = None
    h4: Json = None
    prompts: Mapping[str, Json] = field(default_factory=dict)
    weights_on_grid: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    observed_formats: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    more: Mapping[str, Json] = field(default_factory=dict, metadata=FLAT)

    def part(self, key: str) -> object:
        """What stands under a key of the JSON, named or not; None where nothing does."""
        return getattr(self, key, None) if hasattr(self, key) else self.more.get(key)

    @property
    def is_quick(self) -> bool:
        """Whether the run was a first look and not the whole budget."""
        return bool(self.budget == "quick")

    @property
    def device_name(self) -> str:
        """The device as a person calls it."""
        return self.device.name if self.device and self.device.name else "unknown device"

    @property
    def model_name(self) -> str:
        """The policy's checkpoint."""
        return self.checkpoint.name if self.checkpoint else "unknown model"

    def commit_digits(self, digits: int = 40) -> str:
        """The first ``digits`` hexadecimal digits of the commit, or "unknown"."""
        return str((self.commit and self.commit.sha) or "unknown")[:digits]


def flattened(value: object, without: tuple[str, ...], name: str = "") -> Iterator[tuple[str, str]]:
    """Dotted name and text of every figure in a part of a context.

    Args:
        without: keys that are left out, with all that stands below them.
    """
    plain = encode(value)
    if not isinstance(plain, dict):
        yield name, str(plain)
        return
    for key, inside in plain.items():
        if key not in without:
            yield from flattened(inside, without, f"{name}.{key}" if name else key)


def run_context(device: str, seed: int) -> dict[str, Any]:
    """Context of a run on ``device`` with ``seed``; every value is read, none is assumed."""
    import torch

    from precision_lib.runtime import deterministic, numerical_state

    with deterministic(seed):
        settings = numerical_state()
    settings.pop("generators")
    return {
        "commit": _commit(Path(__file__).parents[2]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "device": _device(device),
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "seed": seed,
        "settings": {name: str(value) for name, value in settings.items()},
        "overrides": {name: os.environ.get(name) for name in _OVERRIDES},
    }


def _version(package: str) -> str | None:
    if package == "torch":  # its own version names the build, +cu130; its metadata may not
        import torch

        return str(torch.__version__)
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit(root: Path) -> dict[str, object]:
    """The commit of the checkout in ``root``, or what ``COMMIT_VARIABLE`` says of a copy of it."""
    if (root / ".git").exists():
        with suppress(OSError, subprocess.SubprocessError):
            sha = _git(root, "rev-parse", "HEAD").strip()
            return {"sha": sha, "dirty": bool(_git(root, "status", "--porcelain").strip())}
    given = os.environ.get(COMMIT_VARIABLE, "")
    sha = given.removesuffix("+dirty")
    return {"sha": sha, "dirty": given != sha} if sha else {"sha": None, "dirty": None}


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=20
    ).stdout


def _device(device: str) -> dict[str, object]:
    import torch

    if not device.startswith("cuda"):
        return {"class": "cpu", "name": _cpu_name()}
    properties = torch.cuda.get_device_properties(torch.device(device))
    return {
        "class": properties.name.lower().replace(" ", "-"),
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "driver": _driver(),
    }


def _driver() -> str | None:
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        out = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout
        return out.splitlines()[0].strip()
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def _cpu() -> dict[str, object]:
    flags = _cpuinfo("flags") or _cpuinfo("Features") or ""
    return {
        "name": _cpu_name(),
        "cores": os.cpu_count(),
        "features": [f for f in _CPU_FEATURES if f in flags.split()],
    }


def _cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(key: str) -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None
