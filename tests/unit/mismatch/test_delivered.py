"""Equal weights rule `delivery` out, different ones prove it; neither says more than it knows."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from precision_lib import cli
from precision_lib.mismatch.delivered import Weights, with_weights
from precision_lib.mismatch.experiments import next_experiments
from precision_lib.mismatch.judgement import Judgement
from precision_lib.mismatch.report import evidence, exit_code
from precision_lib.mismatch.schema import Claims, Dump
from precision_lib.mismatch.verdict import judge
from precision_lib.weights import manifest
from precision_lib.weights.findings import Finding, Outcome
from tests.unit.mismatch.dump_files import npz
from tests.unit.mismatch.test_verdict import BF16, FP32, LENGTH, ROWS, noise
from tools.mismatch.faults import FAULTS

EQUAL = Outcome(equal={"bitwise": 3})
STALE = Outcome(findings=[Finding("stale", f"layers.{i}", "") for i in range(5)])
UNREAD = Outcome(unread={"qweight": "packed"})
BY_NAME = {fault.name: fault for fault in FAULTS}


def planted(name: str) -> Dump:
    fault = BY_NAME[name]
    return fault.plant(7, ROWS, LENGTH, (1e-5, 1e-5), FP32, fault.sizes[-1])


def judged(dump: Dump, outcome: Outcome, step: int | None = None) -> Judgement:
    return with_weights(judge(dump), Weights(outcome, step))


def test_other_weights_become_another_function_where_the_weights_are_equal() -> None:
    dump = replace(planted("trained on these sequences"), step=None)
    assert judge(dump).verdict == "delivery"
    assert judge(dump).also_possible == ("model",)
    judgement = judged(dump, EQUAL)
    assert (judgement.verdict, judgement.also_possible) == ("model", ())
    assert "equal, 3 tensors: delivery is ruled out" in evidence(judgement)[0]
    assert not any("weights are others" in sentence for sentence in evidence(judgement))


def test_equal_weights_of_one_step_do_not_acquit_the_other_steps() -> None:
    dump = planted("not synchronised, by step")
    judgement = judged(dump, EQUAL, step=int(dump.step[0]) if dump.step is not None else 0)
    assert (judgement.verdict, exit_code(judgement)) == ("cannot say", 2)
    assert judgement.also_possible == ("delivery", "model")


def test_weights_of_a_step_that_the_dump_lacks_are_no_evidence() -> None:
    dump = planted("not synchronised, by step")
    for outcome in (EQUAL, STALE):
        judgement = judged(dump, outcome, step=999)
        assert judgement.verdict == "delivery"
        assert any("no evidence" in sentence for sentence in evidence(judgement))


def test_different_weights_convict_what_the_noise_would_hide() -> None:
    assert judge(noise(BF16)).verdict == "precision"
    judgement = judged(noise(BF16), STALE)
    assert (judgement.verdict, exit_code(judgement)) == ("delivery", 1)
    assert "stale layers.0, layers.1, layers.2 and 2 more" in evidence(judgement)[0]
    assert "deliver the named tensors" in next_experiments(judgement)[0]


def test_different_weights_do_not_hide_a_shift() -> None:
    dump = noise(BF16)
    shifted = replace(dump, trainer=np.roll(dump.trainer, -1))
    judgement = judged(shifted, STALE)
    assert (judgement.verdict, judgement.also_possible) == ("alignment", ("delivery",))
    assert any("weights differ" in sentence for sentence in evidence(judgement))


def test_equal_weights_take_delivery_from_what_is_not_excluded() -> None:
    unclaimed = replace(noise(BF16), claims=Claims())
    assert judge(unclaimed).also_possible == ("delivery", "model")
    judgement = judged(unclaimed, EQUAL)
    assert (judgement.verdict, judgement.also_possible) == ("precision", ("model",))


def test_log_probs_equal_to_the_bit_contradict_different_weights() -> None:
    dump = noise(BF16)
    judgement = judged(replace(dump, trainer=dump.rollout), STALE)
    assert (judgement.verdict, exit_code(judgement)) == ("cannot say", 2)


def test_what_was_not_compared_changes_nothing() -> None:
    assert judged(noise(BF16), UNREAD).verdict == "precision"


def test_the_command_reads_two_manifests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.rand(8, 8, generator=generator)
        for name in ("layers.0.weight", "layers.1.weight")
    }
    files = [str(tmp_path / f"{name}.json") for name in ("trainer", "engine", "stale", "record")]
    manifest(weights, files[0], step=3)
    manifest({name: x.bfloat16() for name, x in weights.items()}, files[1], step=3)
    weights["layers.1.weight"] = weights["layers.1.weight"] + 1e-3
    manifest(weights, files[2], step=2)
    dump = str(npz(tmp_path / "d.npz"))
    both = ["--trainer-weights", files[0], "--engine-weights"]
    assert cli.main(["mismatch", dump, *both, files[1]]) == 0
    assert cli.main(["mismatch", dump, *both, files[2], "--json", files[3]]) == 1
    record = json.loads(Path(files[3]).read_text())
    assert record["verdict"] == "delivery"
    assert [finding["tensor"] for finding in record["weights"]["findings"]] == ["layers.1.weight"]
    capsys.readouterr()
    assert cli.main(["mismatch", dump, *both[:2]]) == 4
    assert "--trainer-weights needs --engine-weights too" in capsys.readouterr().err


def test_weights_of_which_one_side_is_of_another_step_are_no_evidence() -> None:
    """A trainer's manifest that was written after the next update convicts nobody."""
    dump = replace(noise(BF16), step=np.full(ROWS, 7))
    for trainer, engine in ((8, 7), (7, 6)):
        judgement = with_weights(judge(dump), Weights(STALE, trainer, engine))
        assert judgement.verdict == "precision"
        assert any("no evidence" in sentence for sentence in evidence(judgement))
    assert with_weights(judge(dump), Weights(STALE, 7, 7)).verdict == "delivery"
