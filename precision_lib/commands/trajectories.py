"""``freeze`` and ``replay``: frozen trajectories, and the same tokens under a configuration.

Wrong options are refused with exit code 4 before a model is loaded.
"""

import argparse
from pathlib import Path
from typing import Any

from precision_lib.commands import INCONCLUSIVE, OK, UsageError, add_models, fail, load_models
from precision_lib.matrix import ROLLOUT_FORMATS
from precision_lib.plugin.options import add_prompts


def add_freeze(commands: Any) -> None:
    freeze = commands.add_parser("freeze", help="sample trajectories once, in FP32, with hashes")
    freeze.add_argument("--num_batches", type=int, default=100, help="default: %(default)s")
    freeze.add_argument("--batch_size", type=int, default=8, help="default: %(default)s")
    freeze.add_argument("--max_new_tokens", type=int, default=128, help="default: %(default)s")
    freeze.add_argument(
        "--samples_per_prompt", type=int, help="a group (default: 4, or what divides the batch)"
    )
    freeze.add_argument(
        "--ignore_eos", action="store_true", help="end-of-text does not end a response"
    )
    freeze.add_argument(
        "--rollout",
        choices=ROLLOUT_FORMATS,
        default="fp32",
        help="format of the sampler, whose log-probs are kept (default: %(default)s)",
    )
    freeze.add_argument("--resume", action="store_true", help="continue what is in --output_dir")
    freeze.add_argument(
        "--output_dir",
        type=Path,
        default=Path("results/frozen_trajectories"),
        help="default: %(default)s",
    )
    freeze.add_argument("--seed", type=int, default=0)
    add_prompts(freeze.add_argument)
    add_models(freeze, pipeline=True, forward_only=True)
    freeze.set_defaults(run=_freeze, kept="continue with --resume")


def _freeze(options: argparse.Namespace) -> int:
    from precision_lib.jsonio import check_writable
    from precision_lib.models.rollout_engine import check_engine
    from precision_lib.phases.freeze import run_freeze
    from precision_lib.trajectories.batches import (
        FreezeSettings,
        check_fits,
        usual_samples_per_prompt,
    )
    from precision_lib.trajectories.freeze import check_free
    from precision_lib.trajectories.shards import TrajectoryError

    try:
        settings = FreezeSettings(
            num_batches=options.num_batches,
            batch_size=options.batch_size,
            max_new_tokens=options.max_new_tokens,
            samples_per_prompt=usual_samples_per_prompt(options.batch_size)
            if options.samples_per_prompt is None
            else options.samples_per_prompt,
            ignore_eos=options.ignore_eos,
            seed=options.seed,
            rollout=options.rollout,
        )
        check_writable(options.output_dir)
        check_free(options.output_dir, resume=options.resume)
    except (TrajectoryError, OSError, ValueError) as error:
        raise UsageError(str(error)) from None
    pipeline = load_models(options)
    try:
        check_fits(pipeline.policy, settings)
        check_engine(pipeline.policy.model, settings.rollout)
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from None
    try:
        manifest = run_freeze(pipeline, settings, options.output_dir, resume=options.resume)
    except TrajectoryError as error:
        raise UsageError(str(error)) from None
    tokens = sum(shard.response_tokens for shard in manifest.shards)
    print(  # noqa: T201
        f"{options.output_dir}: {len(manifest.shards)} batches, "
        f"{sum(shard.sequences for shard in manifest.shards)} sequences, {tokens} response tokens"
    )
    return OK


def add_replay(commands: Any) -> None:
    replay = commands.add_parser(
        "replay", help="frozen trajectories under a configuration: differences only"
    )
    replay.add_argument("--precision_config", required=True, metavar="NAME")
    replay.add_argument(
        "--trajectories_dir",
        type=Path,
        default=Path("results/frozen_trajectories"),
        help="default: %(default)s",
    )
    replay.add_argument("--output_dir", type=Path, help="default: results/replay/NAME")
    replay.add_argument(
        "--batch_size", type=int, help="sequences per forward (default: as they were frozen)"
    )
    replay.add_argument("--matrix", type=Path, help="TOML file of configurations, or `recipes`")
    replay.add_argument("--seed", type=int, default=0, help="of whatever a model draws (nothing)")
    add_models(replay, pipeline=True, forward_only=True)
    replay.set_defaults(run=_replay, kept="nothing of this replay was kept")


def _replay(options: argparse.Namespace) -> int:
    from precision_lib.jsonio import check_writable
    from precision_lib.matrix import get_configuration
    from precision_lib.phases.replay import golden_failure, run_replay
    from precision_lib.reporting.replay import replay_lines
    from precision_lib.trajectories.shards import TrajectoryError, read_manifest

    if options.batch_size is not None and options.batch_size < 1:
        raise UsageError(f"--batch_size {options.batch_size} must be at least 1")
    try:
        configuration = get_configuration(options.precision_config, options.matrix)
        output_dir = options.output_dir or Path("results/replay") / configuration.name
        read_manifest(options.trajectories_dir)
        check_writable(output_dir)
    except (TrajectoryError, OSError, ValueError) as error:
        raise UsageError(str(error)) from None
    pipeline = load_models(options)
    try:
        record = run_replay(
            pipeline,
            configuration,
            options.trajectories_dir,
            output_dir,
            options.batch_size,
            options.seed,
        )
    except TrajectoryError as error:
        raise UsageError(str(error)) from None
    print("\n".join(replay_lines(record)))  # noqa: T201
    print(f"record: {output_dir / 'replay.json'}")  # noqa: T201
    failure = golden_failure(record)
    return OK if failure is None else fail(INCONCLUSIVE, failure)
