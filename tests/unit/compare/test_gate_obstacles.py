"""What cannot be compared is said, each thing in its own words, and is never green.

The hazard. Two models, two devices, two budgets, half a run: every one of these compares without
an error, and finds no regression.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from precision_lib.compare.comparison import Comparison
from precision_lib.compare.directions import DIRECTIONS
from precision_lib.forensics.hypotheses import DECISIONS
from precision_lib.reporting.gate import gate_lines
from tests.unit import small_blocks as small
from tests.unit.small_blocks import Block, cell, judge, known, metric, whole


@pytest.mark.parametrize(
    ("hypothesis", "name"), [("H1", "log_ratio_nsr"), ("H3", "value_td_zero_frac")]
)
def test_a_metric_that_only_one_side_has_is_named(hypothesis: str, name: str) -> None:
    """A metric that was lost is compared no more: as green as a perfect one, unless named."""
    without = whole()
    for c in without["cells"]:
        if (c["hypothesis"], c["configuration"]) == (hypothesis, "bf16_pure"):
            del c["metrics"][name]
    lost, new = judge(without, known(whole())), judge(whole(), known(without))
    place = f"{hypothesis} bf16_pure {name}"
    assert (lost.exit_code, new.exit_code) == (2, 2)
    assert lost.inconclusive == (
        f"unused entries: the baseline has {place}, which this run did not measure",
    )
    assert new.inconclusive == (
        f"missing entries: the baseline does not know {place}; make it again",
    )


def test_a_critical_magnitude_may_go_and_not_come() -> None:
    """Where stagnation never reached one half, it is absent, which is the best that it can be."""
    name, without = "value_critical_magnitude", whole()
    for c in without["cells"]:
        c["metrics"].pop(name, None)
    appeared = judge(whole(), known(without))
    assert appeared.exit_code == 1
    assert [c.configuration for c in appeared.worse] == list(small.CONFIGURATIONS)
    assert appeared.worse[0].message == (
        f"H3 bf16_pure: {name} never reached -> 0.5 units, limit never reached (the range of "
        "the baseline ends before it); component: policy, value"
    )
    gone = judge(without, known(whole()))
    assert (gone.exit_code, gone.worse, gone.inconclusive) == (0, (), ())
    assert [c.metric for c in gone.better] == [name, name]
    assert " 0.5 -> never reached" in gone.better[0].message
    assert judge(without, known(without)).exit_code == 0


Change = Callable[[Block], None]


def into(*keys: str, to: Any) -> Change:
    """A change of one place in a block; None takes it out."""

    def change(block: Block) -> None:
        for key in keys[:-1]:
            block = block[key]
        block[keys[-1]] = to

    return change


def dropped(count: int) -> Change:
    """The last cells were not measured, though the run set out to."""

    def change(block: Block) -> None:
        del block["cells"][-count:]
        block["complete"] = False

    return change


OTHER_MODEL = {"name": "tuned", "sha256": "f" * 64}
NOISE = {"H1": {"bf16_pure": metric(0.4), "fp32_bf16_kl": metric(0.1)}}
FEWER_GROUPS = small.SETTINGS | {"samples_per_prompt": 4}
OBSTACLES: dict[str, tuple[Change, str]] = {
    "another device": (
        into("context", "device", to={"class": "sm90", "name": "a GPU"}),
        "foreign device class: the baseline is of cpu, this run of sm90; give the baseline of sm90",
    ),
    "another checkpoint": (
        into("context", "checkpoint", to=OTHER_MODEL),
        "other model: the checkpoint of the baseline is embedded (000000000000), of this run tuned "
        "(ffffffffffff)",
    ),
    "another reward model": (
        into("context", "reward_model", to=OTHER_MODEL),
        "other model: the reward model of the baseline is embedded (000000000000), of this run "
        "tuned (ffffffffffff)",
    ),
    "another budget": (
        into("context", "budget", to="quick"),
        "other settings than the baseline's: budget whole -> quick",
    ),
    "other settings": (
        into("context", "trajectories", to={"settings": FEWER_GROUPS}),
        "other settings than the baseline's: trajectories.settings.samples_per_prompt 8 -> 4",
    ),
    "nothing measured": (
        into("context", to={"observed_formats": {}}),
        "the run measured nothing: it names no device",
    ),
    "changed matrix": (
        into("matrix", "bf16_pure", "kl", to="fp32"),
        "changed matrix: bf16_pure was {'policy': 'bf16', 'reference': 'bf16', 'reward': 'bf16', "
        "'value': 'bf16', 'kl': 'bf16'} and is {'policy': 'bf16', 'reference': 'bf16', 'reward': "
        "'bf16', 'value': 'bf16', 'kl': 'fp32'}; make the baseline again",
    ),
    "planted fault": (
        into("planted_fault", to="k3_in_bf16"),
        "k3_in_bf16 was planted: this run is not a measurement",
    ),
    "noise": (
        into("noise_floors", to=NOISE),
        "noise above the margin: H1 in FP32 differs by 0.4 between two batch shapes on this "
        "device, the limit is 0.32: look for TF32",
    ),
    "killed after some cells": (
        dropped(1),
        "incomplete: 1 cells were not measured: H6 fp32_bf16_kl",
    ),
    "killed after most": (
        dropped(7),
        "incomplete: 7 cells were not measured: H3 fp32_bf16_kl, H4 bf16_pure, H4 fp32_bf16_kl, H5 "
        "bf16_pure, H5 fp32_bf16_kl, H6 bf16_pure and 1 more",
    ),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_an_obstacle_is_named_and_inconclusive(name: str) -> None:
    change, message = OBSTACLES[name]
    block = whole()
    change(block)
    judged = judge(block, known(whole()))
    assert judged.exit_code == 2
    assert judged.worse == ()
    assert message in judged.inconclusive


@pytest.mark.parametrize("name", ["another device", "another checkpoint", "another budget"])
def test_what_is_foreign_is_not_compared_at_all(name: str) -> None:
    """However bad it looks: a bf16 GPU is no regression of an FP32 processor."""
    block = small.moved(whole(), "H1", "log_ratio_nsr", metric(1e6))
    OBSTACLES[name][0](block)
    judged = judge(block, known(whole()))
    assert (judged.exit_code, judged.compared, judged.worse) == (2, 0, ())


def test_what_is_foreign_and_broken_is_called_both() -> None:
    block = whole(planted_fault="k3_in_bf16", context={"budget": "quick"})
    assert judge(block, known(whole())).inconclusive == (
        "k3_in_bf16 was planted: this run is not a measurement",
        "other settings than the baseline's: budget whole -> quick",
    )


def test_another_budget_is_named_without_all_that_follows_from_it() -> None:
    block = whole()
    block["context"] |= {"budget": "quick", "trajectories": {"settings": FEWER_GROUPS}}
    judged = judge(block, known(whole()))
    assert judged.inconclusive == ("other settings than the baseline's: budget whole -> quick",)


def test_the_seed_and_what_follows_from_it_may_differ() -> None:
    """Another seed samples other tokens, writes other shards and trains another value head."""
    here, there = (
        {
            "seed": seed,
            "trajectories": {
                "settings": small.SETTINGS | {"seed": seed},
                "shards": {"a": f"{seed}"},
                "models": {"value_head": {"sha256": f"{seed}"}},
            },
        }
        for seed in (0, 7)
    )
    assert judge(whole(context=here), known(whole(context=there))).exit_code == 0


def test_overrides_in_the_environment_are_unknown_to_an_older_baseline() -> None:
    """They are recorded; what they do to products is a red test and no obstacle."""
    block = whole()
    block["context"]["overrides"] = {"NVIDIA_TF32_OVERRIDE": "0"}
    judged = judge(block, known(whole()))
    assert (judged.exit_code, judged.inconclusive) == (0, ())


@pytest.mark.parametrize("part", ["budget", "probe", "trajectories", "h3", "h4"])
def test_every_part_of_the_settings_has_to_agree(part: str) -> None:
    here, there = whole(), whole()
    here["context"][part], there["context"][part] = {"length": [1, 2]}, {"length": [1, 3]}
    judged = judge(here, known(there))
    assert (judged.exit_code, judged.compared) == (2, 0)
    [sentence] = judged.inconclusive
    assert sentence.startswith(f"other settings than the baseline's: {part}")


def test_noise_counts_from_the_decision_threshold_on() -> None:
    for value, code in ((0.31, 0), (DECISIONS["H1"].limit, 2)):
        block = whole(noise_floors={"H1": {"bf16_pure": metric(value)}})
        assert judge(block, known(whole())).exit_code == code


def test_a_changed_configuration_is_not_compared_and_the_others_are() -> None:
    block = small.moved(whole(), "H1", "log_ratio_nsr", metric(50.0))
    del block["cells"][4]["metrics"]["value_critical_magnitude"]
    baseline = known(block)
    block = small.moved(whole(), "H1", "log_ratio_nsr", metric(5e4))
    block["matrix"]["bf16_pure"]["kl"] = "fp32"
    block["context"]["observed_formats"] = {"bf16_pure": {"kl": "bf16"}}
    baseline["context"]["observed_formats"] = {"bf16_pure": {"kl": "fp32"}}
    judged = judge(block, baseline)
    assert judged.exit_code == 2, [c.message for c in judged.worse]
    worse = small.moved(block, "H1", "log_ratio_nsr", metric(50.0), "fp32_bf16_kl")
    assert [c.configuration for c in judge(worse, baseline).worse] == ["fp32_bf16_kl"]


def test_cells_and_functions_that_only_one_side_has_are_named() -> None:
    more = whole()
    more["cells"].append(cell("H1", "mine"))
    more["matrix"]["mine"] = more["matrix"]["bf16_pure"]
    more["conformance"]["functions"]["entropy"] = small.counts()
    missing, unused = judge(more, known(whole())), judge(whole(), known(more))
    assert (missing.exit_code, unused.exit_code) == (2, 2)
    assert missing.inconclusive == (
        "missing entries: the baseline does not know H1 mine, core entropy; make it again",
    )
    assert unused.inconclusive == (
        "unused entries: the baseline has H1 mine, core entropy, which this run did not measure",
    )


@pytest.mark.parametrize(
    ("hypothesis", "name", "before", "fewest"),
    [
        ("H1", "log_ratio_nsr", 1000, 1000),  # the budget fixes it
        # 128 sequences of at most 32 tokens: 3.0902 * 16 * sqrt(256) = 791.1
        ("H3", "value_td_zero_frac", 4000, 3209),
        # and of at most 7 pairs: 3.0902 * 3.5 * 16 = 173.05
        ("H2", "reward_tie_frac", 448, 275),
        ("H2", "reward_kendall_tau", 448, 275),
        ("H2", "advantage_rms_error", 128, 128),
    ],
)
def test_fewer_elements_than_chance_explains_are_an_obstacle(
    hypothesis: str, name: str, before: int, fewest: int
) -> None:
    """One element fewer than the limit, and any number where there was one."""

    def counted(n: int) -> Block:
        return small.moved(whole(), hypothesis, name, typical(hypothesis, name) | {"n": n})

    baseline = known(counted(before))
    for n in (before, before + 1, fewest):
        assert judge(counted(n), baseline).inconclusive == ()
    judged = judge(counted(fewest - 1), baseline)
    assert judged.exit_code == 2
    assert judged.inconclusive == (
        f"fewer elements: {hypothesis} {name} compared {fewest - 1}, the baseline {before}, in "
        "bf16_pure",
    )
    assert judge(counted(0), known(counted(0))).exit_code == 2, "nothing against nothing"


def test_fewer_elements_in_many_configurations_are_one_sentence() -> None:
    """A sentence each would be hundreds in a run of which half is missing."""
    block = whole()
    for c in block["cells"]:
        c["metrics"] = {name: m | {"n": 10} for name, m in c["metrics"].items()}
    judged = judge(block, known(whole()))
    gated = sum(bool(how.scale) for rows in DIRECTIONS.values() for how in rows.values())
    assert len(judged.inconclusive) == gated
    assert judged.inconclusive[0] == (
        "fewer elements: H1 log_ratio_near_zero_frac compared 10, the baseline 1000, in bf16_pure, "
        "fp32_bf16_kl"
    )


def typical(hypothesis: str, name: str) -> dict[str, Any]:
    return small.typical(hypothesis)[name]


def test_sentences_can_be_added_and_are_never_green() -> None:
    judged = Comparison(compared=5)
    assert (judged + Comparison()).exit_code == 0
    assert (judged + Comparison(inconclusive=("something",))).exit_code == 2


def test_a_hypothesis_that_the_baseline_does_not_know_is_new_and_no_obstacle() -> None:
    """A single cell of a known one is missing; and a baseline without any cell knows nothing."""
    baseline = known(whole())
    del baseline["cells"]["H5"]
    judged = judge(whole(), baseline)
    assert (judged.exit_code, judged.inconclusive, judged.new) == (0, (), ("H5, 2 cells",))
    record = replace(small.record(whole()), gate=judged.gate("x.json"), regressions=())
    assert any("new: the baseline does not know H5, 2 cells" in t for t, _ in gate_lines(record))
    del baseline["cells"]["H4"]["bf16_pure"]
    assert judge(whole(), baseline).exit_code == 2
