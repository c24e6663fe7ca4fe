"""A whole PPO step in every configuration beside FP32: how far the policy gradient turns.

No configuration is judged by it. The test fails where nothing was compared, or where the instrument
is no finer than what it measures.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from precision_lib.phases.main_job import MainJob


def test_fp32_turns_the_gradient_less_than_bf16(main_job: "MainJob") -> None:
    """FP32 one rounding away is the floor: above 0, and below what 16 bits do."""
    damage = main_job.pipeline_damage()
    assert min(damage.tokens, damage.coordinates, damage.sequences) > 0
    floor, pure = (damage.of(name) for name in ("fp32_baseline", "bf16_pure"))
    assert floor is not None
    assert floor.gradient_cosine is not None
    assert floor.gradient_cosine.value < 1
    if pure is not None and pure.gradient_cosine is not None:
        assert pure.gradient_cosine.value < floor.gradient_cosine.value
