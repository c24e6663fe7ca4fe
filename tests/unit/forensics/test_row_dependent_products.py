"""The main job, the gate, replay and PPO where a row of a product depends on the other rows.

The hazard. Such products are what every GPU has and no CPU. There a bf16 model in another batch
shape differs from itself by nearly its whole rounding error, although the size of the error is the
same. Verdicts, controls and the gate must not depend on that.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from precision_lib.compare.baseline import baseline_of
from precision_lib.compare.gate import judge
from precision_lib.forensics.budget import budget
from precision_lib.forensics.h1.study import H1Study, open_study
from precision_lib.forensics.h2 import families
from precision_lib.forensics.hypotheses import HYPOTHESES
from precision_lib.forensics.policy_shift import OPERATING_KL
from precision_lib.forensics.probe import QUICK
from precision_lib.forensics.study import Study
from precision_lib.matrix import all_configurations, get_configuration
from precision_lib.models.pipeline import Pipeline, load_pipeline
from precision_lib.phases.main_job import MainJob
from precision_lib.record.context import run_context
from precision_lib.record.record import Record
from precision_lib.record.recorder import Recorder
from precision_lib.reporting.table import batch_variance_lines
from precision_lib.scoring.micro import batch_shapes_exchanged
from precision_lib.training.trainer import ppo_step
from precision_lib.trajectories.batches import FreezeSettings
from precision_lib.trajectories.freeze import freeze
from precision_lib.trajectories.replay import replay
from tests.unit.forensics.split_products import SplitProducts, parts_of
from tests.unit.small_pipelines import random_pipeline
from tests.unit.small_runs import opened

#: Enough for the promotions, demotions and irrelevant promotions of all hypotheses.
CONFIGURATIONS = all_configurations(None)


@dataclass(frozen=True)
class Measured:
    """The record of a quick main job; hypothesis to whether its controls are null."""

    record: Record
    null: dict[str, bool]

    def words(self) -> dict[tuple[str, str], str]:
        """(hypothesis, configuration) to the verdict of the cell; a hypothesis alone to its own."""
        return self.record.verdicts | {
            (h.hypothesis, ""): h.verdict for h in self.record.hypotheses
        }

    def metric(self, hypothesis: str, configuration: str, name: str) -> float:
        """Value of a metric of a cell."""
        return self.record.by_key[hypothesis, configuration].metrics[name].value


@pytest.fixture(scope="module", autouse=True)
def _few_synthetic_rewards() -> Iterator[None]:
    """H2's evidence of other rewards needs no model, and no product."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(families, "GROUPS", 64)
        yield


@pytest.fixture(scope="module")
def embedded() -> Pipeline:
    return load_pipeline()


@pytest.fixture(scope="module")
def models() -> Pipeline:
    """Random ones: products are split alike, and a forward takes a tenth of an embedded one's."""
    return random_pipeline()


def studies(pipeline: Pipeline) -> Sequence[Study]:
    """H1 to H6 on a budget of a few seconds."""
    quick = budget(quick=True)
    small = (
        replace(quick, freeze=replace(quick.freeze, max_new_tokens=16))
        .changed("H1", seq_lengths=(32,), target_kls=(OPERATING_KL,))
        .changed("H4", length=128)
        .changed("H5", length=32, opening=17)
        .changed("H6", steps=1)
    )
    job = MainJob(pipeline, small, Recorder(Path("unwritten.json"), CONFIGURATIONS))
    return tuple(map(job.study, HYPOTHESES))


def h1_study(pipeline: Pipeline) -> H1Study:
    """H1 alone, on the same budget."""
    settings = replace(QUICK, seq_lengths=(32,), target_kls=(OPERATING_KL,))
    return open_study(pipeline.policy, settings, CONFIGURATIONS)


def measure(studies: Sequence[Study], directory: Path) -> Measured:
    """Cells and verdicts of the studies."""
    recorder = Recorder(directory / "report.json", CONFIGURATIONS)
    recorder.context = run_context("cpu", 0)
    for study in studies:
        for configuration in CONFIGURATIONS:
            recorder.add_cell(study.cell(configuration))
        recorder.add_hypothesis(study.verdict())
    recorder.expected = list(recorder.cells)
    record = recorder.record()
    return Measured(record, {h.hypothesis: h.control.is_null for h in record.hypotheses})


@pytest.fixture(scope="module")
def usual(models: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    return measure(studies(models), tmp_path_factory.mktemp("usual"))


@pytest.fixture(scope="module")
def split(models: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    with SplitProducts() as products:
        measured = measure(studies(models), tmp_path_factory.mktemp("split"))
    assert products.split > 0
    return measured


# The products themselves


def test_a_row_depends_on_the_other_rows_and_the_product_is_as_exact_as_before() -> None:
    """Both orders are within gamma_k sum |a||b| of the exact product."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, 256, generator=generator) for n in (96, 64))
    plain, exact = a @ b.T, a.double() @ b.double().T
    terms = 256 * 2.0**-24
    bound = terms / (1 - terms) * (a.double().abs() @ b.double().abs().T)
    with SplitProducts() as products:
        by_rows = {rows: a[:rows] @ b.T for rows in (3, 8, 96)}
    assert products.split == sum(parts_of(rows) > 1 for rows in by_rows)
    assert any(not torch.equal(x, plain[:rows]) for rows, x in by_rows.items())
    for rows, x in by_rows.items():
        assert ((x - exact[:rows]).abs() <= bound[:rows]).all()


# The main job


def test_the_words_are_those_of_a_cpu(usual: Measured, split: Measured) -> None:
    """Every cell, and every hypothesis."""
    assert len(split.words()) == len(HYPOTHESES) * (len(CONFIGURATIONS) + 1)
    assert split.words() == usual.words()


def test_no_control_is_broken(split: Measured) -> None:
    """Policy and reference go through the same shapes, so identical weights stay identical."""
    assert split.null == dict.fromkeys(HYPOTHESES, True)


def test_the_batch_variance_of_bf16_is_of_the_size_of_its_error(embedded: Pipeline) -> None:
    """Two independent realisations of one error differ by up to sqrt(2) of its RMS.

    More than a tenth says that nearly all of the rounding errors are drawn anew; FP32 amplifies
    nothing, so its own stays four orders of magnitude below. In a random model of width 32 most of
    the error is that of the rounded weights, so these are the embedded ones.
    """
    study = h1_study(embedded)
    with SplitProducts():
        bf16, fp32 = (
            study.cell(get_configuration(name)).metrics for name in ("bf16_pure", "fp32_baseline")
        )
    variance, damage = bf16["batch_variance"].value, bf16["log_ratio_nsr"].value
    assert 0.1 * damage < variance < 2**0.5 * damage
    assert fp32["batch_variance"].value < 1e-3 * variance


def test_on_a_cpu_the_batch_variance_is_zero(usual: Measured) -> None:
    """Of everything but FP32 products with a single output, the scores of H2."""
    for hypothesis in ("H1", "H3", "H4", "H5", "H6"):
        assert usual.metric(hypothesis, "bf16_pure", "batch_variance") == 0


def test_the_summary_says_how_far_two_batch_shapes_differ(usual: Measured, split: Measured) -> None:
    heading, of_h1, *others = [line for line, _ in batch_variance_lines(split.record)]
    variance = split.metric("H1", "bf16_pure", "batch_variance")
    assert heading == "two batch shapes of one bf16 model differ by"
    assert of_h1 == f"H1: {variance:#.2g} times the signal at a KL of 1e-04"
    assert [line[:2] for line in others] == ["H2", "H3", "H4", "H5", "H6"]
    [(same, _)] = batch_variance_lines(usual.record)
    assert same == "two batch shapes of one bf16 model give the same bits"


# The gate


def test_a_baseline_can_be_made_and_the_same_run_is_green(split: Measured) -> None:
    judgement = judge(split.record, baseline_of(split.record))
    assert (judgement.exit_code, judgement.inconclusive) == (0, ())
    assert judgement.compared > 250


def test_another_batch_shape_is_no_regression(
    split: Measured, models: Pipeline, tmp_path: Path
) -> None:
    """The allowance holds what another realisation of the same rounding errors does."""
    with SplitProducts(), batch_shapes_exchanged():
        other = measure([h1_study(models)], tmp_path)
    values = [m.metric("H1", "bf16_pure", "log_ratio_nsr") for m in (split, other)]
    assert values[0] != values[1], "the batch shape was not changed"
    judgement = judge(other.record, baseline_of(split.record))
    assert [c.message for c in judgement.worse] == []


def test_an_error_that_doubles_is_a_regression_still(split: Measured) -> None:
    """An allowance of the size of the batch variance would let it pass."""
    before = split.metric("H1", "bf16_pure", "log_ratio_nsr")
    cell = split.record.by_key["H1", "bf16_pure"]
    metric = cell.metrics["log_ratio_nsr"]
    doubled = replace(metric, value=2 * metric.value, low=2 * metric.low, high=2 * metric.high)
    worse = replace(cell, metrics={**cell.metrics, "log_ratio_nsr": doubled})
    cells = tuple(worse if c == cell else c for c in split.record.cells)
    [change] = judge(replace(split.record, cells=cells), baseline_of(split.record)).worse
    assert (change.metric, change.before) == ("log_ratio_nsr", before)


# What makes a measurement uncertain: FP32 itself


@contextmanager
def one_bf16_pass(more_rows_than: int) -> Iterator[None]:
    """FP32 products of more rows take their factors in bf16, as a low-precision switch does."""

    class Lowered(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            product = func in (torch.ops.aten.bmm.default, torch.ops.aten.mm.default)
            if product and args[0].dtype == torch.float32 and args[0].shape[0] > more_rows_than:
                args = tuple(x.bfloat16().float() for x in args)
            return func(*args, **(kwargs or {}))

    with Lowered():
        yield


def test_fp32_that_does_not_repeat_itself_makes_every_cell_inconclusive(
    embedded: Pipeline,
) -> None:
    """Planted: bf16 in large FP32 products only, so that the batch shape decides the format."""
    study = h1_study(embedded)
    with one_bf16_pass(more_rows_than=200):
        verdict = study.verdict()
        cells = [study.cell(get_configuration(n)) for n in ("bf16_pure", "fp32_baseline")]
    assert {c.verdict for c in cells} == {"inconclusive"}
    assert verdict.verdict == "inconclusive"
    assert verdict.explanation.startswith(
        "bf16_pure is inconclusive: FP32 in another batch shape is off by "
    )
    study = h1_study(embedded)
    assert study.cell(get_configuration("fp32_baseline")).verdict == "healthy"


# Replay and training


def test_a_replay_in_the_frozen_shapes_is_bitwise_and_others_are_seen(tmp_path: Path) -> None:
    pipeline = random_pipeline("Qwen3", moved=2.0**-7)
    small = FreezeSettings(num_batches=2, batch_size=4, max_new_tokens=10, samples_per_prompt=2)
    with SplitProducts():
        freeze(pipeline, small, tmp_path / "frozen")
        fp32, bf16 = (
            replay(pipeline, get_configuration(name), tmp_path / "frozen", tmp_path / name)
            for name in ("fp32_baseline", "bf16_pure")
        )
    assert all((fp32.golden_repeats.bitwise_equal or {"": False}).values())
    assert bf16.noise_floor.repeated["policy_logprob"].max_abs == 0
    assert (bf16.noise_floor.fp32_rebatched["policy_logprob"].max_abs or 0) > 0
    assert (bf16.summary["policy_logprob"].rms or 0) > 0


@pytest.mark.parametrize("name", ["bf16_pure", "fp32_baseline"])
def test_the_first_ratio_of_a_training_run_is_one_bit_for_bit(name: str) -> None:
    """Rollout and update score in the same shapes."""
    with ExitStack() as stack:
        products = stack.enter_context(SplitProducts())
        run = stack.enter_context(opened(name, epochs=2))
        line = ppo_step(run)
    assert products.split > 0
    assert run.checked
    assert line.learning.first_log_ratio == line.symptoms.kl_k1_mean == 0
