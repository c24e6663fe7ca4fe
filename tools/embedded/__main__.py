"""``python -m tools.embedded train | train-reward``: make the embedded models again."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from precision_lib.environment import set_environment

set_environment()

from tools.embedded import train, train_reward  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what was asked for, and print what it reached."""
    parser = argparse.ArgumentParser(prog="python -m tools.embedded", description=__doc__)
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    for name, text, run in (
        ("train", "the policy, from the standard library's texts", _train),
        ("train-reward", "its reward model and value head, from the same texts", _train_reward),
    ):
        action = actions.add_parser(name, help=text)
        action.add_argument("--output_dir", type=Path, required=True)
        action.add_argument("--seed", type=int, default=0)
        action.set_defaults(run=run)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print(f"{options.output_dir}: {options.run(options.output_dir, options.seed)}")  # noqa: T201
    return 0


def _train(output_dir: Path, seed: int) -> str:
    figures = train.train_embedded(output_dir, seed=seed)["held_out"]
    return (
        f"held-out cross-entropy {figures['cross_entropy']:.3f}, trigram "
        f"{figures['trigram_cross_entropy']:.3f}, entropy {figures['entropy']:.2f} nats/token"
    )


def _train_reward(output_dir: Path, seed: int) -> str:
    card = train_reward.train_reward(output_dir, seed=seed)
    explained = card["value_head"]["held_out"]["explained_variance"]
    return (
        f"{card['held_out']['accuracy']:.1%} of held-out pairs right, value head explains "
        f"{explained:.0%} of the variance of held-out returns"
    )


if __name__ == "__main__":
    sys.exit(main())
