"""The suite's options, for pytest and for the help of ``precision-forensics``.

argparse's ``add_argument`` and pytest's ``addoption`` take the same words, so each option stands
here once.
"""

from collections.abc import Callable
from pathlib import Path

from precision_lib import faults

#: ``addoption`` of a pytest group or ``add_argument`` of an argparse group.
Add = Callable[..., object]
#: Default of ``--model`` and ``--reward-model``; ``models.loading`` knows it, and imports torch.
EMBEDDED = "embedded"


def add_all(add: Add) -> None:
    """Every option of the suite."""
    add(
        "--target",
        metavar="MODULE[:ATTRIBUTE]",
        help="run the conformance tests, and only those, on this PPO core; or on trl, verl, "
        "openrlhf, torchtune, liger",
    )
    add_for_a_core(add)
    add_for_every_run(add)
    add_for_the_main_job(add)
    add_for_the_sweep(add)


def add_for_a_core(add: Add) -> None:
    """Options that need a target."""
    add(
        "--known-failures",
        metavar="FILE.toml",
        help="with --target: checks that are known to fail (default: the list that is shipped "
        "for a framework; 'none' for none)",
    )
    add(
        "--update-known-failures",
        type=Path,
        metavar="FILE.toml",
        help="with --target: write what fails to this list; reasons that stand there are kept",
    )
    add(
        "--check-timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="with --target: how long a check of 25 examples may take (default: 60)",
    )


def add_for_every_run(add: Add) -> None:
    """The device and the gate."""
    add("--gpu", action="store_true", help="run on CUDA; exit code 4 without a device")
    add(
        "--baseline",
        type=Path,
        metavar="FILE",
        help="fail on what is worse than this; exit code 2 when it cannot be compared",
    )
    add(
        "--update-baseline",
        action="store_true",
        help="write what was measured to --baseline (default: baselines/<device-class>.json)",
    )
    add("--markdown", type=Path, metavar="FILE", help="one screen of it, for a pull request")


def add_for_the_main_job(add: Add) -> None:
    """Options of the measurements; the sweep takes them too."""
    add("--quick", action="store_true", help="smaller budget, for a first look")
    add(
        "--resume",
        action="store_true",
        help="continue the last run of this record, which was ended, with its finished cells",
    )
    add("--model", default=EMBEDDED, metavar="NAME_OR_DIR", help="causal LM (default: embedded)")
    add(
        "--reward-model",
        default=EMBEDDED,
        metavar="NAME_OR_DIR",
        help="sequence classifier with one label (default: embedded)",
    )
    add_prompts(add)
    add("--seed", type=int, default=0, help="of prompts, responses and direction")
    add(
        "--matrix",
        type=Path,
        metavar="FILE.toml",
        help="precision configurations of your own, or `recipes`: those that are shipped",
    )
    add(
        "--plant-fault",
        choices=sorted(faults.FAULTS),
        metavar="NAME",
        help="break one kernel on purpose, to see which test catches it",
    )


def add_prompts(add: Add) -> None:
    """What the policy is asked."""
    add(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="prompts of your own: JSON lines, or text with one a line (default: embedded)",
    )
    add(
        "--chat-template",
        metavar="TEMPLATE",
        help="of your prompts: auto (the tokenizer's own where it has one; the default), none, "
        "or a Jinja file",
    )


def add_for_the_sweep(add: Add) -> None:
    """Options of ``tests/sweep`` alone."""
    add("--fresh", action="store_true", help="sweep: run finished cells again")
    add("--counterfactuals", action="store_true", help="sweep: train the single demotions too")
    add("--jobs", type=int, metavar="N", help="sweep: cells at once; main job: 1 for one process")
    add("--executor", default="local", choices=("local", "ray"), help="sweep: who runs the cells")
