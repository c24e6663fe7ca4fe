"""Stands for a trainer's process: leaves the files that one would, or dies as it is told to.

Run as ``python -S -E fake_trainer.py DIRECTORY SPECIFICATION``; imports nothing but the standard
library, so that it is there in a moment.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType


def note(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text + "\n")


def main(directory: Path, text: str) -> None:
    """Do what the specification says, JSON with all of these keys.

    ``steps`` to write; ``summary``, the text of the summary at the end; ``diary``, a file of all
    processes; ``tries``: what the first tries do after their first step, an exit code or a negative
    signal number; ``words`` that each try says; ``deaf``: ignore SIGTERM; ``hang``: never end by
    oneself; ``company``: begin when so many have; ``linger``: seconds before the end.
    """
    told = json.loads(text)
    diary = Path(told["diary"])

    def asked_to_stop(_number: int, _frame: FrameType | None) -> None:
        note(diary, f"- {directory}")
        sys.exit(3)

    signal.signal(signal.SIGTERM, signal.SIG_IGN if told["deaf"] else asked_to_stop)
    note(directory / "tries.txt", "")
    number = (directory / "tries.txt").stat().st_size  # this try, counted from 1
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "none")
    session = "own" if os.getsid(0) == os.getpid() else "shared"
    note(diary, f"+ {directory} {os.getpid()} {gpu} {os.environ['OMP_NUM_THREADS']} {session}")
    for words in told["words"][number - 1 : number]:
        sys.stderr.write(words + "\n")
    while diary.read_text().count("+ ") < told["company"]:
        time.sleep(0.005)
    for step in range(told["steps"]):
        line = {"step": step, "reward_mean": 1.0, "kl_sequence_mean": 0.0}
        note(directory / "steps.jsonl", json.dumps(line))
        if step == 0 and number <= len(told["tries"]):
            die(told["tries"][number - 1])
    while told["hang"]:
        time.sleep(0.005)
    time.sleep(told["linger"])
    (directory / "summary.json").write_text(told["summary"])
    note(diary, f"- {directory}")


def die(how: int) -> None:
    sys.stderr.flush()
    if how < 0:
        os.kill(os.getpid(), -how)
    sys.exit(how)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
