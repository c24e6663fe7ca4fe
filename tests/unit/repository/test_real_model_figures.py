"""What README and docs/findings.md say of a real model is the committed record's."""

from precision_lib.compare.baseline import Baseline, summary_of
from precision_lib.forensics.damage.figures import StepDamage
from precision_lib.forensics.statistics import Metric
from precision_lib.record.record import Record
from precision_lib.reporting.damage import lost
from precision_lib.reporting.numbers import percent, two
from tests.unit.repository.test_readme_figures import RECORDS, between, check_phrases, document
from tools.real_model_tables import load_real_model, real_model_tables

MODELS = load_real_model(RECORDS / "smollm2_quick.json")
RUNS = [summary_of(record) for record in MODELS]


def damage(run: Baseline, hypothesis: str, configuration: str, metric: str) -> Metric:
    cell = run.cell(hypothesis, configuration)
    assert cell is not None
    return cell.metrics[metric]


def test_the_tables_are_those_of_a_clean_checkout() -> None:
    real, _ = RUNS
    assert between(document("docs/findings.md"), "real-model") == real_model_tables(MODELS)
    assert real.context.commit is not None
    assert not real.context.commit.dirty
    assert set(real.cells) == {"H1", "H2", "H3", "H4", "H5", "H6"}


def test_the_sentences_are_the_record() -> None:
    real, embedded = RUNS
    noise = [damage(run, "H1", "bf16_pure", "log_ratio_nsr").value for run in RUNS]
    healed = damage(real, "H1", "bf16_fp32_kl", "log_ratio_nsr").value
    drift = two(damage(real, "H4", "bf16_pure", "accum_err_final").value)
    mismatch = damage(real, "H5", "bf16_pure", "rollout_log_ratio_final")
    bounds = f"{two(mismatch.value)} [{two(mismatch.low)}, {two(mismatch.high)}]"
    check_phrases(
        [
            f"bf16 makes {two(noise[0])} times as much noise as signal in the log-ratio",
            f"an FP32 KL leaves {two(healed)}.",
            f"of two bf16 models is off by {drift} nats RMS over 255 tokens",
        ],
        document("README.md"),
    )
    check_phrases(
        [
            f"is {two(noise[0])} against {two(noise[1])}, {noise[0] / noise[1]:.1f} times.",
            f"with 8 sequences of 63 response tokens: {bounds} nats",
        ],
        document("docs/findings.md"),
    )
    verdicts = [
        {name: judged.verdict for name, judged in run.hypotheses.items() if name != "H5"}
        for run in (real, embedded)
    ]
    assert verdicts[0] == verdicts[1]
    assert real.hypotheses["H5"].verdict == "inconclusive"


def of_pure_bf16(record: Record) -> StepDamage:
    assert record.pipeline_damage is not None
    step = record.pipeline_damage.of("bf16_pure")
    assert step is not None
    return step


def test_the_sentences_about_a_whole_step_are_the_record() -> None:
    real, embedded = (of_pure_bf16(record) for record in MODELS)
    turned = [1 - step.gradient_cosine.value for step in (real, embedded) if step.gradient_cosine]
    assert len(turned) == 2
    assert real.advantage_rms_error is not None
    assert real.advantage_sign_flip_frac is not None
    check_phrases(
        [
            f"1 - cosine is {lost(real.gradient_cosine)}, {turned[0] / turned[1]:.0f} times",
            f"The law gives {two(1 - (real.expected_cosine or 0.0))}.",
            f"With exact inputs {lost(real.exact_inputs_cosine).split(' ')[0]} remains",
            f"advantages are off by {two(real.advantage_rms_error.value)}, and "
            f"{percent(real.advantage_sign_flip_frac.value)} have the other sign",
        ],
        document("docs/findings.md"),
    )
