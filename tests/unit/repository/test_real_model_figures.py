"""What README and docs/findings.md say of a real model is the committed baseline's."""

from precision_lib.compare.baseline import Baseline
from precision_lib.forensics.statistics import Metric
from precision_lib.reporting.numbers import two
from tests.unit.repository.test_readme_figures import RECORDS, between, check_phrases, document
from tools.real_model_tables import load_real_model, real_model_tables

RUNS = load_real_model(RECORDS / "smollm2_quick.json")


def damage(run: Baseline, hypothesis: str, configuration: str, metric: str) -> Metric:
    cell = run.cell(hypothesis, configuration)
    assert cell is not None
    return cell.metrics[metric]


def test_the_tables_are_those_of_a_clean_checkout() -> None:
    real, _ = RUNS
    assert between(document("docs/findings.md"), "real-model") == real_model_tables(RUNS)
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
