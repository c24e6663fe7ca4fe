"""The figures in README, docs/pipeline.md and docs/findings.md are those of the committed records.

The hazard. A figure in a sentence stays when the record behind it changes.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from precision_lib.compare.baseline import Baseline, load_baseline, summary_of
from precision_lib.record.files import load_record
from precision_lib.record.record import Record
from precision_lib.record.sharing import complete, resolve
from precision_lib.reporting.numbers import interval, percent, two
from precision_lib.reporting.table import summary
from tests.unit.small_blocks import metric, moved, read, typed
from tools.findings import findings

ROOT = Path(__file__).parents[3]
RECORDS = ROOT / "docs" / "records"
HYPOTHESES = ["H1", "H2", "H3", "H4", "H5", "H6"]

Block = dict[str, Any]
Cells = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def block() -> Block:
    """The record behind the README as JSON, with what its file holds once in every cell."""
    block = dict(read(RECORDS / "cpu.json")["precision"])
    resolve(block["cells"])
    complete(block["cells"])
    return block


@pytest.fixture(scope="module")
def record() -> Record:
    """The same, as it is read."""
    return load_record(RECORDS / "cpu.json")


@pytest.fixture(scope="module")
def seeds() -> list[Baseline]:
    """What is kept of runs with other seeds."""
    return [load_baseline(path) for path in sorted(RECORDS.glob("cpu_seed_*.json"))]


@pytest.fixture(scope="module")
def readme() -> str:
    return document("README.md")


def document(name: str) -> str:
    """The text of a document of the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


def cells_of(block: Block) -> Cells:
    return {(c["hypothesis"], c["configuration"]): c for c in block["cells"]}


def between(text: str, name: str) -> str:
    """What a command wrote between the markers of ``name``."""
    begin, end = (f"<!-- {name}: {word} -->" for word in ("begin", "end"))
    return text.split(begin)[1].split(end)[0].strip()


def test_the_record_is_a_whole_and_real_measurement(record: Record) -> None:
    assert record.complete
    assert record.planted_fault is None
    assert [h.hypothesis for h in record.hypotheses] == HYPOTHESES
    assert len(record.by_key) == len(record.matrix) * len(HYPOTHESES)


def test_the_records_are_of_different_seeds_and_one_clean_code(
    record: Record, seeds: list[Baseline]
) -> None:
    contexts = [record.context, *(baseline.context for baseline in seeds)]
    assert len({context.seed for context in contexts}) == len(contexts) > 1
    assert {context.commit and context.commit.dirty for context in contexts} == {False}
    assert len({context.commit_digits() for context in contexts}) == 1


@pytest.mark.parametrize("hypothesis", ["H1", "H2", "H3"])
def test_another_seed_changes_no_verdict(
    hypothesis: str, record: Record, seeds: list[Baseline]
) -> None:
    """Of a hypothesis or a cell. H4 and H5 use few sequences: their cells can be inconclusive.

    So is H5 itself on some seeds, which the findings say.
    """
    first, *others = [
        {name: cell.verdict for name, cell in run.cells[hypothesis].items()}
        | {h: found.verdict for h, found in run.hypotheses.items() if h != "H5"}
        for run in (summary_of(record), *seeds)
    ]
    assert len(first) == len(record.matrix) + len(HYPOTHESES) - 1
    assert others
    assert all(other == first for other in others)


def test_the_summary_is_the_records(record: Record) -> None:
    lines = "\n".join(text.rstrip() for text, _ in summary(record))
    assert between(document("docs/pipeline.md"), "summary") == f"```\n{lines}\n```"


def test_the_findings_are_the_records(record: Record, seeds: list[Baseline]) -> None:
    assert between(document("docs/findings.md"), "findings") == findings(record, seeds).strip()


def test_the_readme_is_read_in_three_minutes(readme: str) -> None:
    assert readme.count("\n") <= 150


def test_the_readmes_matrix_is_the_records(record: Record, readme: str) -> None:
    """Some of its rows, as they are printed."""
    shown = output_below(readme, "Where does my pipeline lose precision?")
    printed = [text.rstrip() for text, _ in summary(record)]
    assert len(shown) == 6
    assert [line for line in shown if line not in printed] == []


def output_below(text: str, heading: str) -> list[str]:
    """The lines of the second code block below a heading: the first is the command."""
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return section.split("```\n")[3].splitlines()


def test_the_table_of_effects_is_the_records(block: Block) -> None:
    text = document("docs/findings.md")
    missing = [row for row in effects(block) if row not in text]
    assert not missing, "the record asks for\n" + "\n".join(missing)


@pytest.mark.parametrize("hypothesis", HYPOTHESES)
def test_the_figures_of_the_findings_are_the_records(block: Block, hypothesis: str) -> None:
    phrases = PHRASES[hypothesis](cells_of(block))
    check_phrases(phrases, document("docs/findings.md"))


def test_the_readmes_findings_are_the_records(block: Block, readme: str) -> None:
    check_phrases(readme_phrases(block), readme)


def test_a_figure_of_another_record_is_missed(readme: str, block: Block) -> None:
    other = moved(block, "H2", "advantage_rms_error", metric(9.9), "fp32_bf16_reward")
    with pytest.raises(AssertionError, match="an advantage error of"):
        check_phrases(readme_phrases(other), readme)


def check_phrases(phrases: list[str], text: str) -> None:
    """Each phrase stands in the text, wherever its lines break."""
    words = " ".join(text.split())
    assert phrases, "nothing was compared"
    missing = [phrase for phrase in phrases if phrase not in words]
    assert not missing, "the record asks for\n" + "\n".join(missing)


def readme_phrases(block: Block) -> list[str]:
    """What the README finds, a phrase or two for each hypothesis.

    H5's FP32 trainer beside an FP32 engine differs by 3e-5 nats: what demotion adds is the whole.
    """
    cells = cells_of(block)
    card = json.loads((ROOT / "precision_lib/models/embedded/card.json").read_text())
    kl = [cells["H1", name]["metrics"] for name in ("bf16_pure", "bf16_fp32_kl")]
    zeros = " -> ".join(percent(m["log_ratio_near_zero_frac"]["value"]) for m in kl)
    noise = " -> ".join(two(m["log_ratio_nsr"]["value"]) for m in kl)
    reward = cells["H2", "fp32_bf16_reward"]["metrics"]["advantage_rms_error"]["value"]
    value = cells["H3", "bf16_pure"]["metrics"]
    drift = cells["H4", "fp32_bf16_ref"]["metrics"]["accum_err_final"]["value"]
    positions = cells["H4", "bf16_pure"]["evidence"]["sampled"]["by_position"]
    mismatch = cells["H5", "bf16_pure"]["metrics"]["rollout_log_ratio_final"]["value"]
    verdicts = {h["hypothesis"]: h["verdict"] for h in block["hypotheses"]}
    added = {
        h["hypothesis"]: h["contrasts"]["demotion_damage_added"]["value"]
        for h in block["hypotheses"]
    }
    return [
        f"On the embedded model ({card['parameters'] / 1e6:.1f} million parameters)",
        f"A damage above {block['thresholds']['H1']['limit']:.2f} is `impaired`",
        f"**KL collapse: {verdicts['H1']}.**",
        f"removes the zero log-ratios ({zeros}), not the noise (noise/signal {noise}).",
        f"**Reward quantization: {verdicts['H2']}.**",
        f"causes an advantage error of {two(reward)}.",
        f"**Value-head instability: {verdicts['H3']}.**",
        f"{percent(value['value_stagnation_rate']['value'])} of a bf16 head's predictions",
        f"the advantage error is {two(value['advantage_rms_error']['value'])}.",
        f"**Reference drift: {verdicts['H4']}.**",
        f"causes {two(drift)} nats RMS over {positions[-1]['last'] + 1:,} tokens.",
        f"**Rollout mismatch: {verdicts['H5']}.** Two bf16 engines differ by {two(mismatch)} nats",
        f"a bf16 engine and an FP32 trainer by {two(added['H5'])}.",
        f"**Update absorption: {verdicts['H6']}.**",
        f"lose {percent(added['H6'])} of what FP32 masters learn.",
    ]


def effects(block: Block) -> list[str]:
    """The rows of the table of effects in the findings."""
    cells, rows = cells_of(block), []
    words = {
        "H1": ("zero log-ratios ", "noise/signal "),
        "H2": ("tied rewards ", "advantage error "),
        "H3": ("values that do not change ", "advantage error "),
        "H4": ("none", "nats at the end "),
    }
    promoted = ("bf16_fp32_kl", "bf16_fp32_reward", "bf16_fp32_value", "bf16_fp32_ref")
    demoted = ("fp32_bf16_kl", "fp32_bf16_reward", "fp32_bf16_value", "fp32_bf16_ref")
    verdicts = {h["hypothesis"]: h["verdict"] for h in block["hypotheses"]}
    for h, up, down in zip(words, promoted, demoted, strict=True):
        decision, (symptom, damage) = block["thresholds"][h], words[h]
        of = [cells[h, name]["metrics"] for name in ("bf16_pure", up, down)]
        if decision["symptom"]:
            symptom += " -> ".join(percent(m[decision["symptom"]]["value"]) for m in of[:2])
        before, after, alone = (two(m[decision["metric"]]["value"]) for m in of)
        rows.append(f"| {h} | {symptom} | {damage}{before} -> {after} | {alone} | {verdicts[h]} |")
    return rows + [_effect_beside_the_matrix(h) for h in block["hypotheses"][4:]]


def _effect_beside_the_matrix(judged: dict[str, Any]) -> str:
    """A row of H5 or H6, whose promotions and demotions are no rows of the matrix."""
    symptom, damage = {
        "H5": ("nats per token {:.2g} -> 0", "nats at the end "),
        "H6": ("{:.2%} of the weights more move in a step", "share of the change that is lost "),
    }[judged["hypothesis"]]
    of = {name: metric["value"] for name, metric in judged["contrasts"].items()}
    before = judged["error_budget"]["whole"]["value"]
    after = before * (1 - of["promotion_damage_healed"])
    symptom = symptom.format(abs(of["promotion_symptom_removed"])).replace("%", " %")
    numbers = f"{damage}{two(before)} -> {two(after)} | {two(of['demotion_damage_added'])}"
    return f"| {judged['hypothesis']} | {symptom} | {numbers} | {judged['verdict']} |"


def short(value: float) -> str:
    """Two digits and a power of ten as people write it: 5.9e-4."""
    return f"{value:.1e}".replace("e-0", "e-")


def kl_phrases(cells: Cells) -> list[str]:
    pure, demoted = (cells["H1", c] for c in ("bf16_pure", "fp32_bf16_kl"))
    parts = demoted["evidence"]["log_ratio_nsr_by_rounding"]
    executed, weights = (short(pure["evidence"][k]) for k in ("executed_kl", "true_kl"))
    return [
        f"are {executed} nats apart although their weights are {weights} apart",
        f"noise is {two(demoted['metrics']['log_ratio_nsr']['value'])} times the signal "
        f"({parts['logits_only']:.2f} from casting the logits, "
        f"{parts['log_probs_only']:.2f} from rounding the log-probs)",
    ]


def reward_phrases(cells: Cells) -> list[str]:
    evidence = cells["H2", "bf16_pure"]["evidence"]
    causes = evidence["causes"]
    low, high = evidence["synthetic"]["critical_offset_over_spread"]["predicted_range"]
    forward, stored = (
        two(causes[name]["advantage_rms_error"]["value"])
        for name in ("forward_only", "stored_only")
    )
    return [
        f"most of it is the bf16 forward ({forward}); storing the score in bf16 makes {stored}.",
        f"the rewards' mean is {low:.0f} to {high:.0f} times their spread within a group",
    ]


def value_phrases(cells: Cells) -> list[str]:
    evidence = cells["H3", "fp32_bf16_value"]["evidence"]
    points = evidence["by_magnitude"]
    errors = [p["advantage_rms_error"]["value"] for p in points]
    first, last = (f"{points[i]['magnitude']:g}" for i in (0, -1))
    offset = two(evidence["critical_offset_over_spread"])
    return [
        f"for RMS values from {first} to {last} the error is "
        f"{two(min(errors))} to {two(max(errors))}.",
        f"the limit is passed where the rewards are moved by {offset} times their spread",
    ]


def drift_phrases(cells: Cells) -> list[str]:
    pure, promoted, reference, kl = (
        typed(cells["H4", name]["metrics"]["accum_err_final"])
        for name in ("bf16_pure", "bf16_fp32_ref", "fp32_bf16_ref", "fp32_bf16_kl")
    )
    evidence = cells["H4", "bf16_pure"]["evidence"]
    tokens = evidence["sampled"]["by_position"][-1]["last"] + 1
    alone = typed(evidence["sampled"]["components"]["policy"]["drift_nats_per_1000_tokens"])
    derived = evidence["expected_policy_drift"]["sampled"]["expected_of_golden_tokens"]["value"]
    length = evidence["sampled"]["critical_length"]
    low, high = (f"{length[k]:.0f}" for k in ("low", "high"))
    return [
        f"Over {tokens:,} tokens the log-ratio of two bf16 models is off by {interval(pure)} nats "
        "RMS at the end.",
        f"With an FP32 reference it is off by {interval(promoted)} nats RMS.",
        f"The policy alone drifts by {interval(alone)} nats per 1,000 tokens "
        f"(derived: {two(derived)}).",
        f"A bf16 reference against an FP32 policy makes {interval(reference)} nats RMS, a bf16 KL "
        f"on FP32 models {interval(kl)}.",
        f"Responses of up to {length['value']:.0f} [{low}, {high}] tokens are not affected.",
    ]


def rollout_phrases(cells: Cells) -> list[str]:
    cell = cells["H5", "bf16_pure"]
    final, evidence = typed(cell["metrics"]["rollout_log_ratio_final"]), cell["evidence"]
    rms = {fmt: two(of["rms"]) for fmt, of in evidence["formats"].items()}
    return [
        f"Two bf16 engines differ by {interval(final)} nats RMS at the end of the response.",
        f"Their errors have a correlation of {two(evidence['halves']['correlation'])}.",
        f"A token of a bf16 trainer differs by {rms['bf16']} nats RMS from a bf16 engine, by "
        f"{rms['fp16']} from fp16, {rms['fp32']} from FP32, {rms['int8']} from int8 and "
        f"{rms['fp8']} from fp8.",
    ]


def absorption_phrases(cells: Cells) -> list[str]:
    cell = cells["H6", "bf16_pure"]
    masters = cell["evidence"]["masters"]
    kept = {fmt: two(100 * of["logprob_change_slope"]["value"]) for fmt, of in masters.items()}
    moved = {fmt: two(100 * of["weights_moved_frac"]["value"]) for fmt, of in masters.items()}
    return [
        f"{kept['bf16']} % of the change of log-probs that FP32 masters make; in fp16 they keep "
        f"{kept['fp16']} %.",
        f"{moved['fp32']} % moves in a step, of weights that are stored in bf16 {moved['bf16']} %.",
    ]


PHRASES: dict[str, Callable[[Cells], list[str]]] = {
    "H1": kl_phrases,
    "H2": reward_phrases,
    "H3": value_phrases,
    "H4": drift_phrases,
    "H5": rollout_phrases,
    "H6": absorption_phrases,
}
