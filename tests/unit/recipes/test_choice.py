"""The cheapest healthy recipe, planted: a damaged or an undecided one is never named."""

from dataclasses import replace

import pytest

from precision_lib.forensics.damage.figures import PipelineDamage, StepDamage
from precision_lib.forensics.hypotheses import HYPOTHESES
from precision_lib.forensics.hypothesis import Hypothesis
from precision_lib.forensics.operating import OperatingPoint, unchanged
from precision_lib.recipes.answer import answer
from precision_lib.recipes.choice import (
    NONE_HEALTHY,
    RECOMMENDED,
    UNDECIDED,
    Choice,
    choose,
    obstacles,
    recipes_of,
)
from precision_lib.recipes.damage import NOT_MEASURED
from precision_lib.recipes.tables import operating_point
from precision_lib.record.record import Record
from precision_lib.reporting.recommendation import recommendation_markdown, sentences
from tests.unit.recipes import made_records as made

#: Where the made records were measured, with every hypothesis.
POINT = OperatingPoint("all", made.LENGTH, made.KL, True, True, "group")
CHEAP, FP32 = "bf16_pure", "fp32_baseline"


def choice_of(record: Record, point: OperatingPoint = POINT, by: str = "time") -> Choice:
    return choose(recipes_of(record, made.SHAPE, point, "h100"), by)


def test_the_cheapest_is_chosen_where_all_are_healthy() -> None:
    choice = choice_of(made.made_record({FP32: {}, CHEAP: {}}))
    assert choice.verdict == RECOMMENDED
    assert choice.chosen is not None
    assert choice.chosen.name == CHEAP


@pytest.mark.parametrize("hypothesis", HYPOTHESES)
def test_a_cheap_recipe_with_one_impaired_hypothesis_is_passed_over(hypothesis: str) -> None:
    choice = choice_of(made.made_record({CHEAP: {hypothesis: made.IMPAIRED}, FP32: {}}))
    assert choice.chosen is not None
    assert choice.chosen.name == FP32
    assert not choice.cheaper_undecided


@pytest.mark.parametrize("hypothesis", HYPOTHESES)
def test_a_cheap_recipe_with_one_undecided_hypothesis_is_named_and_not_chosen(
    hypothesis: str,
) -> None:
    choice = choice_of(made.made_record({CHEAP: {hypothesis: made.UNDECIDED}, FP32: {}}))
    assert choice.chosen is not None
    assert choice.chosen.name == FP32
    assert [r.name for r in choice.cheaper_undecided] == [CHEAP]


@pytest.mark.parametrize("hypothesis", HYPOTHESES)
def test_a_cell_that_nobody_measured_is_not_healthy(hypothesis: str) -> None:
    record = made.without(made.made_record({CHEAP: {}}), hypothesis, CHEAP)
    choice = choice_of(record)
    assert choice.verdict == UNDECIDED
    assert choice.chosen is None
    verdicts = {d.hypothesis: d.verdict for d in choice.recipes[0].damages}
    assert verdicts[hypothesis] == NOT_MEASURED
    assert list(obstacles(choice.recipes)) == [hypothesis]


def test_all_undecided_is_inconclusive_and_names_none() -> None:
    choice = choice_of(made.made_record({CHEAP: {}, FP32: {}}, otherwise=made.UNDECIDED))
    assert choice.verdict == UNDECIDED
    assert choice.chosen is None


def test_all_impaired_is_none_healthy_and_says_what_is_in_the_way() -> None:
    record = made.made_record({CHEAP: {"H1": 2.0}, FP32: {"H1": 1.0, "H2": 1.0}})
    choice = choice_of(record)
    assert choice.verdict == NONE_HEALTHY
    assert list(obstacles(choice.recipes)) == ["H1"]
    found = answer(record, made.SHAPE, operating_point("ppo", made.LENGTH, made.KL), "h100", "time")
    assert not found.settings
    (said,) = sentences(found)
    assert "none is recommended" in said
    assert "H1 KL collapse, in all 2 recipes; the nearest is fp32_baseline with 1.0" in said


def test_a_figure_that_is_not_finite_impairs_whatever_the_damage() -> None:
    nonfinite = {HYPOTHESES["H1"].nonfinite: made.figure(0.001)}
    record = made.changed(made.made_record({CHEAP: {}}), "H1", CHEAP, **nonfinite)
    assert choice_of(record).verdict == NONE_HEALTHY


def test_what_is_healthy_where_it_was_measured_can_be_impaired_at_the_users_length() -> None:
    record = made.made_record({CHEAP: {"H5": 0.1}, FP32: {}})
    near, far = choice_of(record), choice_of(record, replace(POINT, length=100 * made.LENGTH))
    assert near.chosen is not None
    assert far.chosen is not None
    assert (near.chosen.name, far.chosen.name) == (CHEAP, FP32)
    (damage,) = [d for d in far.recipes[0].damages if d.hypothesis == "H5"]
    assert damage.carried is not None
    assert damage.carried.basis == "extrapolated"
    assert damage.carried.measured_at == "100 response tokens"


@pytest.mark.parametrize(("algorithm", "hypothesis"), [("grpo", "H3"), ("dapo", "H1")])
def test_a_hypothesis_about_what_is_not_run_is_in_nobodys_way(
    algorithm: str, hypothesis: str
) -> None:
    record = made.made_record({CHEAP: {hypothesis: made.IMPAIRED}})
    point = operating_point(algorithm, made.LENGTH, made.KL)
    assert choice_of(record, point).verdict == RECOMMENDED
    assert choice_of(record, operating_point("ppo", made.LENGTH, made.KL)).verdict == NONE_HEALTHY


def test_a_hypothesis_that_is_declared_later_is_judged_without_a_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    h3 = HYPOTHESES["H3"]
    decision = replace(h3.decision, hypothesis="H99")
    later: Hypothesis = replace(h3, decision=decision, needs="", carry=unchanged)
    without_it = made.made_record({CHEAP: {}, FP32: {}})
    monkeypatch.setitem(HYPOTHESES, "H99", later)
    assert choice_of(without_it).verdict == UNDECIDED
    choice = choice_of(made.made_record({CHEAP: {"H99": made.IMPAIRED}, FP32: {}}))
    assert choice.chosen is not None
    assert choice.chosen.name == FP32


def test_the_cosine_of_a_step_is_shown_where_the_record_has_it() -> None:
    record, point = made.made_record({CHEAP: {}, FP32: {}}), operating_point("ppo", 100, made.KL)

    def shown(of: Record) -> str:
        return recommendation_markdown(answer(of, made.SHAPE, point, "h100", "time"))

    assert "cosine" not in shown(record)
    step = StepDamage(CHEAP, None, made.figure(0.75, 0.2), *6 * (None,), made.figure(0.1))
    damage = PipelineDamage(1e-4, 1e-2, 0.1, 6, 100, 10, 10, 0.1, (step,))
    text = shown(replace(record, pipeline_damage=damage))
    assert "a cosine with FP32's of 1 minus 0.25 [0.10, 0.40]." in text
    assert "| 0.25 [0.10, 0.40] | healthy |" in text
    assert "| – | healthy |" in text
    skipped = replace(damage, steps=(replace(step, gradient_cosine=None),))
    text = shown(replace(record, pipeline_damage=skipped))
    assert "holds inf or NaN, so a trainer skips the step." in text
    assert "| step skipped | healthy |" in text


def test_the_front_holds_what_nothing_beats() -> None:
    names = {CHEAP: {"H1": 0.2}, "fp16_pure": {"H1": 0.1}, FP32: {"H1": 0.05}}
    worse = {"bf16_fp32_ref": {"H1": 0.3}}
    choice = choice_of(made.made_record(names | worse))
    assert choice.front == ("fp16_pure", FP32)  # bf16_pure costs the same as fp16_pure


def test_cheap_in_time_and_cheap_in_memory_are_two_questions() -> None:
    record = made.made_record({"bf16_trainer_rollout": {}, "bf16_fp8_rollout": {}})
    by_time, by_memory = choice_of(record, by="time"), choice_of(record, by="memory")
    assert by_time.chosen is not None
    assert by_memory.chosen is not None
    assert by_time.chosen.name == "bf16_fp8_rollout"
    assert by_memory.chosen.name == "bf16_trainer_rollout"


def test_a_recipe_without_products_on_the_hardware_is_not_chosen() -> None:
    record = made.made_record({"bf16_fp8_rollout": {}, FP32: {}})
    choice = choose(recipes_of(record, made.SHAPE, POINT, "a100"))
    assert choice.chosen is not None
    assert choice.chosen.name == FP32


def test_a_record_with_a_planted_fault_or_without_cells_is_refused() -> None:
    record = made.made_record({CHEAP: {}})
    for broken, message in (
        (replace(record, planted_fault="k3_as_textbook"), "planted fault k3_as_textbook"),
        (replace(record, cells=()), "holds no measured cell"),
    ):
        with pytest.raises(ValueError, match=message):
            answer(broken, made.SHAPE, POINT, "h100", "time")
