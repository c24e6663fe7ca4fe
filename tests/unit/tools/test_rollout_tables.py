"""The table of a real engine is that of the record, and the command makes both."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from precision_lib.mismatch.saving import save_dump
from precision_lib.models.loading import Checkpoint
from precision_lib.scoring.sampled import figures_of_tokens
from tools.rollout_tables import main, rollout_markdown

ROOT = Path(__file__).parents[3]
SIGMAS = 4.5


def test_the_page_shows_the_record() -> None:
    record = json.loads((ROOT / "docs/records/rollouts/vllm.json").read_text())
    assert len(record["rows"]) >= 8
    assert rollout_markdown(record).strip() in (ROOT / "docs/mismatch.md").read_text()


def test_an_engine_without_errors_has_no_half(
    tiny_llama: Checkpoint,
    saved_checkpoint: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All of the pair's difference is then the trainer's, and nothing correlates with nothing."""
    tokens = torch.randint(1, 250, (16, 24), generator=torch.Generator().manual_seed(0))
    figures = figures_of_tokens(tiny_llama.model, list(tokens))
    exact = [f.logprobs[7:].tolist() for f in figures]
    exact[0][0] += 0.01  # a correlation needs some spread
    dump, page, record = (tmp_path / name for name in ("d.npz", "p.md", "r.json"))
    save_dump(dump, {"rollout_dtype": "bf16"}, token_ids=tokens, rollout_logprobs=exact)
    page.write_text("<!-- rollout-vllm: begin -->\n<!-- rollout-vllm: end -->\n")
    model = str(saved_checkpoint("Llama"))
    for _ in range(2):  # a second measurement replaces the first
        assert (
            main([f"a=b={dump}", f"--model={model}", f"--record={record}", f"--into={page}"]) == 0
        )
    [row] = json.loads(record.read_text())["rows"]
    assert row["engine"] == "a=b"
    assert 0 < row["weights_sigma"] < row["trainers"]["bf16, FP32 sums"]["trainer_sigma"]
    by_chance = SIGMAS / math.sqrt(row["tokens"])  # a correlation of what is independent
    for part in row["trainers"].values():
        own, other = row["engine_sigma"], part["trainer_sigma"]
        assert abs(part["pair_sigma"] ** 2 - own**2 - other**2) < 2 * own * other * by_chance
        assert abs(part["correlation"]) < by_chance
    assert "| embedded | a=b |" in page.read_text()
    assert "a=b" in capsys.readouterr().out
