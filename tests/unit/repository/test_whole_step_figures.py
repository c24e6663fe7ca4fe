"""The figures of a whole PPO step in docs/findings.md are those of the committed record."""

from precision_lib.forensics.damage.figures import PipelineDamage
from precision_lib.record.files import load_record
from precision_lib.reporting.damage import lost
from precision_lib.reporting.numbers import percent, two
from tests.unit.repository.test_readme_figures import RECORDS, check_phrases, document


def test_the_figures_of_a_whole_step_are_the_records() -> None:
    damage = load_record(RECORDS / "cpu.json").pipeline_damage
    assert damage is not None
    check_phrases(step_phrases(damage), document("docs/findings.md"))


def step_phrases(damage: PipelineDamage) -> list[str]:
    pure, floor = (damage.of(name) for name in ("bf16_pure", "fp32_baseline"))
    assert pure is not None
    assert floor is not None
    of = {s.configuration: 1 - s.gradient_cosine.value for s in damage.steps if s.gradient_cosine}
    promoted = [value for name, value in of.items() if name != "fp32_baseline"]
    assert max(abs(value / of["bf16_pure"] - 1) for value in promoted) < 0.05
    law = [two(1 - (s.expected_cosine or 0.0)) for s in (pure, floor)]
    shares = pure.advantage_sign_flip_frac, pure.rank_inversion_frac, pure.clip_change_frac
    signs, ranks, clips = (percent(m.value) for m in shares if m)
    error = pure.logprob_rms_error
    assert error is not None
    return [
        f"In `bf16_pure` 1 - cosine is {lost(pure.gradient_cosine)}. The law gives {law[0]}",
        f"whose log-probs are off by {two(error.value)} nats",
        f"away is at {two(of['fp32_baseline'])}, and the law gives {law[1]}.",
        f"With exact inputs of the loss {lost(pure.exact_inputs_cosine).split(' ')[0]} remains.",
        f"FP32 clips {percent(damage.clipped_frac)} of the tokens, and bf16 decides otherwise for "
        f"{clips}.",
        f"{signs} of the advantages have the other sign, and {ranks} of the pairs",
    ]
