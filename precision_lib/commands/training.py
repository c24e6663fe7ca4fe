"""``ppo``: train one configuration, or continue where it was stopped.

Wrong options are refused with exit code 4 before a model is loaded.
"""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from precision_lib.commands import (
    INCONCLUSIVE,
    INTERNAL,
    OK,
    UsageError,
    add_models,
    fail,
    load_models,
)

#: Setting to what `--help` says of it; defaults and types are those of `PPOSettings`.
SETTINGS = {
    "max_steps": "PPO steps",
    "batch_size": "sequences of a rollout",
    "samples_per_prompt": "responses to each prompt",
    "max_new_tokens": "response tokens at most",
    "epochs": "passes over a rollout",
    "minibatches": "optimizer steps of a pass",
    "learning_rate": "of AdamW, constant (default: by the size of the policy)",
    "clip_range": "of the ratio",
    "value_clip_range": "of the values, reward units",
    "value_coefficient": "weight of the value loss",
    "gamma": "discount",
    "lam": "GAE lambda",
    "kl_coefficient": "weight of the KL penalty (default: by the size of the policy)",
    "target_kl": "nats per sequence; makes the coefficient adaptive",
    "kl_horizon": "sequences, of the adaptive coefficient",
    "max_grad_norm": "gradients are clipped to it",
    "diagnostic_sequences": "of a rollout, scored in FP32 too for the damage metrics",
    "evaluation_sequences": "responses of the FP32 evaluation at the end",
    "perturbation": "relative random change of the initial weights, to see chaos apart",
    "importance_weights": "weigh the policy loss by trainer's probability over rollout's",
    "importance_cap": "largest importance weight (default: 2)",
    "checkpoint_every": "steps between two states on disk",
}
#: Settings that are one of some words; all others are numbers.
WORDS = {"importance_weights": ("token", "sequence")}


def add_settings(parser: argparse.ArgumentParser, leave_out: tuple[str, ...] = ()) -> None:
    """An option for every field of ``PPOSettings`` but the seed and those left out."""
    for name, meaning in SETTINGS.items():
        if name in leave_out:
            continue
        # None stands for the default of PPOSettings, which imports torch: --help is quick.
        if name in WORDS:
            parser.add_argument(f"--{name}", choices=WORDS[name], help=meaning)
        else:
            parser.add_argument(f"--{name}", type=_number, metavar="X", help=meaning)


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    return int(number) if number.is_integer() else number


def settings_of(options: argparse.Namespace, make: Any = None, **changes: Any) -> Any:
    """The :class:`training.settings.PPOSettings` that ``options`` name.

    Args:
        make: what makes them from the given fields; default the class itself.
        changes: fields that are no options.

    Raises:
        UsageError: a number out of its range, or a fraction where a count is due.
    """
    from precision_lib.training.settings import PPOSettings

    given = {
        name: getattr(options, name)
        for name in SETTINGS
        if getattr(options, name, None) is not None
    } | changes
    for field in fields(PPOSettings):
        value = given.get(field.name)
        if field.type is int and isinstance(value, float):
            raise UsageError(f"--{field.name} {value} must be a whole number")
        if field.type is not int and isinstance(value, int):
            given[field.name] = float(value)
    try:
        return (make or PPOSettings)(**given)
    except ValueError as error:
        raise UsageError(str(error)) from None


def add_ppo(commands: Any) -> None:
    ppo = commands.add_parser(
        "ppo", help="PPO training of one configuration, with diagnostics for every step"
    )
    ppo.add_argument("--precision_config", required=True, metavar="NAME")
    add_settings(ppo)
    ppo.add_argument("--seed", type=int, default=0)
    ppo.add_argument("--resume", action="store_true", help="continue what is in --output_dir")
    ppo.add_argument("--output_dir", type=Path, help="default: results/ppo/NAME-seed-N")
    ppo.add_argument("--matrix", type=Path, help="TOML file of configurations, or `recipes`")
    add_models(ppo, pipeline=True)
    ppo.set_defaults(run=_ppo, kept="steps up to the last state are kept: continue with --resume")


def _ppo(options: argparse.Namespace) -> int:
    from precision_lib.jsonio import check_writable
    from precision_lib.matrix import get_configuration
    from precision_lib.models.rollout_engine import check_engine
    from precision_lib.phases.ppo import run_ppo
    from precision_lib.reporting.training import summary_lines
    from precision_lib.training.defaults import NAMES, parameters_of, sized
    from precision_lib.training.directory import check_free
    from precision_lib.training.failures import COMPLETED, RESUMABLE
    from precision_lib.training.invariants import InvariantError
    from precision_lib.training.settings import check_columns
    from precision_lib.training.state import StateError
    from precision_lib.training.summary import SummaryError

    settings = settings_of(options, seed=options.seed)
    given = {name for name in NAMES if getattr(options, name) is not None}
    try:
        configuration = get_configuration(options.precision_config, options.matrix)
        check_columns(configuration)
        name = f"{configuration.name}-seed-{options.seed}"
        output_dir = options.output_dir or Path("results/ppo") / name
        check_writable(output_dir)
        check_free(output_dir, resume=options.resume)
    except (StateError, OSError, ValueError) as error:
        raise UsageError(str(error)) from None
    pipeline = load_models(options)
    settings, text = sized(settings, parameters_of(pipeline.policy.model), given)
    if text:
        print(text)  # noqa: T201
    try:
        check_room(pipeline, settings)
        check_engine(pipeline.policy.model, configuration.rollout_format)
    except TypeError as error:
        raise UsageError(str(error)) from None
    try:
        summary = run_ppo(pipeline, configuration, settings, output_dir, resume=options.resume)
    except (StateError, SummaryError) as error:
        raise UsageError(str(error)) from None
    except InvariantError as error:
        return fail(INTERNAL, str(error))
    print("\n".join(summary_lines(summary)))  # noqa: T201
    print(f"record: {output_dir}")  # noqa: T201
    if summary.status in RESUMABLE:
        return fail(INTERNAL, f"{summary.status}: {summary.reason}; continue with --resume")
    if summary.status != COMPLETED:
        return fail(INCONCLUSIVE, f"training ended early, {summary.status}: {summary.reason}")
    return OK


def check_room(pipeline: Any, settings: Any) -> None:
    """Refuse lengths that a model has no positions for.

    How long a text is for a reward model with a vocabulary of its own is not known before.

    Raises:
        UsageError: prompt and response do not fit.
    """
    from precision_lib.trajectories.batches import check_fits

    models = {"policy": pipeline.policy, "reference": pipeline.reference}
    if pipeline.reward.tokenizer.get_vocab() == pipeline.policy.tokenizer.get_vocab():
        models["reward"] = pipeline.reward
    for name, model in models.items():
        try:
            check_fits(pipeline.policy, settings.sampling, model.model)
        except ValueError as error:
            raise UsageError(f"{name} model: {error}") from None
