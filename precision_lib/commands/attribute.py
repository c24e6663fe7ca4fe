"""``attribute``: where the error of a log-prob is born, by kind of module and by layer.

Exit codes: 0 attributed, 2 nothing to attribute, 4 wrong usage.
"""

import argparse
from pathlib import Path
from typing import Any

from precision_lib.commands import OK, UsageError, add_models, check_devices, print_lines
from precision_lib.plugin.options import add_prompts


def add_attribute(commands: Any) -> None:
    attribute = commands.add_parser(
        "attribute", help="where the error of a log-prob is born: by kind of module and by layer"
    )
    attribute.add_argument(
        "--precision_config", default="bf16_pure", metavar="NAME", help="default: %(default)s"
    )
    attribute.add_argument("--num_prompts", type=int, default=16, help="default: %(default)s")
    attribute.add_argument(
        "--max_new_tokens", type=int, default=64, help="response tokens (default: %(default)s)"
    )
    attribute.add_argument(
        "--output_dir", type=Path, default=Path("results/attribution"), help="default: %(default)s"
    )
    attribute.add_argument("--json", type=Path, metavar="FILE", help="the record, elsewhere")
    attribute.add_argument("--markdown", type=Path, metavar="FILE", help="the tables, elsewhere")
    attribute.add_argument("--matrix", type=Path, help="TOML file with configurations of your own")
    attribute.add_argument(
        "--plant-fault", metavar="NAME", help="test an FP32 model with one wrong module instead"
    )
    attribute.add_argument("--seed", type=int, default=0)
    add_prompts(attribute.add_argument)
    add_models(attribute, forward_only=True)
    attribute.set_defaults(run=_attribute, kept="nothing of this attribution was kept")


def _attribute(options: argparse.Namespace) -> int:
    from precision_lib.attribution.places import UnknownModelError
    from precision_lib.attribution.study import NonfiniteError
    from precision_lib.models.loading import CheckpointError
    from precision_lib.phases.attribute import run_attribute, write_attribution
    from precision_lib.reporting.attribution import attribution_lines

    checkpoint, configuration, settings = _checked(options)
    try:
        record = run_attribute(checkpoint, configuration, settings, planted=options.plant_fault)
    except (CheckpointError, UnknownModelError, NonfiniteError) as error:
        raise UsageError(str(error)) from None
    files = write_attribution(record, options.output_dir, options.json, options.markdown)
    print_lines(attribution_lines(record))
    print(f"\nrecord: {files[0]}; picture: {files[2]}")  # noqa: T201
    return OK


def _checked(options: argparse.Namespace) -> Any:
    """(checkpoint, configuration, settings), refused before anything is computed."""
    from precision_lib.faults.modules import MODULE_FAULTS
    from precision_lib.jsonio import check_writable
    from precision_lib.matrix import get_configuration
    from precision_lib.models.loading import CheckpointError, load_checkpoint
    from precision_lib.phases.attribute import AttributionSettings, check_fits
    from precision_lib.trajectories.prompt_file import with_prompts

    if options.plant_fault not in (None, *MODULE_FAULTS):
        known = ", ".join(MODULE_FAULTS)
        raise UsageError(f"--plant-fault {options.plant_fault}: no such fault; known: {known}")
    try:
        configuration = get_configuration(options.precision_config, options.matrix)
        settings = AttributionSettings(options.num_prompts, options.max_new_tokens, options.seed)
        check_writable(options.output_dir)
        check_devices(options)
        checkpoint = load_checkpoint(options.model, options.device, options.device_map)
        checkpoint = with_prompts(checkpoint, options.prompts, options.chat_template)
        check_fits(checkpoint, settings)
    except (CheckpointError, OSError, ValueError) as error:
        raise UsageError(str(error)) from None
    return checkpoint, configuration, settings
