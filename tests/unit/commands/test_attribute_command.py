"""``precision-forensics attribute`` as a user meets it: files, sentences, refusals."""

from collections.abc import Callable
from pathlib import Path

import pytest

from precision_lib import cli
from precision_lib.attribution.breakdown import Breakdown, Part
from precision_lib.faults.modules import MODULE_FAULTS
from precision_lib.forensics.statistics import Metric
from precision_lib.record.attribution import (
    Architecture,
    AttributionRecord,
    Formats,
    Sequences,
    load_attribution,
)
from precision_lib.record.context import Context, Model
from precision_lib.reporting.attribution import attribution_sentences
from precision_lib.reporting.plots.attribution import attribution_picture

FEW = ("--num_prompts", "8", "--max_new_tokens", "8")


@pytest.fixture(autouse=True)
def _without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_it_writes_a_record_its_tables_and_a_picture(
    tmp_path: Path, saved_checkpoint: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "mine.txt"
    prompts.write_text("\n".join(f"Prompt {i}." for i in range(8)))
    elsewhere = tmp_path / "table.md"
    given = ("--output_dir", str(tmp_path / "out"), "--markdown", str(elsewhere))
    model = str(saved_checkpoint("Qwen3"))
    code = cli.main(("attribute", "--model", model, "--prompts", str(prompts), *FEW, *given))
    assert code == 0
    shown = capsys.readouterr().out
    record = load_attribution(tmp_path / "out" / "attribution.json")
    assert all(sentence in shown for sentence in attribution_sentences(record))
    assert len(attribution_sentences(record)) == 3
    assert "policy " in shown
    assert "prompts mine.txt" in shown
    assert "not yours" not in shown
    assert record.power.n == 64
    assert record.context.prompts["count"] == 8
    assert "| norms |" in elsewhere.read_text()
    for suffix in ("png", "svg"):
        assert (tmp_path / "out" / f"attribution.{suffix}").stat().st_size > 1000


def test_a_planted_fault_comes_out_on_top(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "softmax_op_by_op"
    given = ("--output_dir", str(tmp_path), "--plant-fault", name)
    assert cli.main(("attribute", *FEW, *given)) == 0
    shown = capsys.readouterr().out
    assert f"the largest parts of its error power are {MODULE_FAULTS[name][1]} 100.0 %" in shown
    assert f"PLANTED FAULT: {name}" in shown
    assert "policy and prompts embedded, not yours" in shown


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--num_prompts", "7"), 4, "needs at least 8"),
        (("--max_new_tokens", "0"), 4, "must be at least 1"),
        (("--max_new_tokens", "9999"), 4, "positions; use fewer --max_new_tokens"),
        (("--plant-fault", "none"), 4, "no such fault; known: norm_in_bf16"),
        (("--precision_config", "none"), 4, "unknown precision configuration"),
        (("--prompts", "missing.txt"), 4, "cannot be read"),
        (("--chat-template", "auto"), 4, "give --prompts FILE too"),
        (("--precision_config", "fp32_baseline", *FEW), 2, "no error to attribute"),
    ],
)
def test_what_cannot_be_attributed_is_said(
    options: tuple[str, ...],
    code: int,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(("attribute", *options, "--output_dir", str(tmp_path))) == code
    assert message in capsys.readouterr().err


def part(name: str, value: float) -> Part:
    metric = Metric(value, value - 0.1, value + 0.1, 64, "share")
    return Part(name, metric, metric, metric)


def test_sentences_say_what_is_not_known_and_what_does_not_add_up() -> None:
    parts = part("embedding", 0.1), part("layer 0", 0.3), part("LM head", 0.2)
    record = AttributionRecord(
        Context(checkpoint=Model("mine")),
        None,
        Formats("bf16_pure", {"policy": "bf16", "kl": "bf16"}),
        Sequences(8, 8, 0),
        Architecture("MistralForCausalLM", kinds_known=False),
        Metric(0.04, 0.03, 0.05, 64, "nats squared"),
        None,
        Breakdown(parts, Metric(0.4, 0.2, 0.6, 64, "share"), adds_up=False),
        0.0,
    )
    first, second, third = attribution_sentences(record)
    assert "off by 0.20 nats RMS on 64 response tokens" in first
    assert "are layer 0 30.0 % [20.0, 40.0], LM head 20.0 %" in first
    assert "The modules of MistralForCausalLM are not known here" in first
    assert "The 1 layers make 30 % of it" in second
    assert third.startswith("The parts add up to 60.0 % [40.0, 80.0] of the whole: they do not add")
    assert len(attribution_picture(record).figure.axes) == 1
