"""How far a replayed policy is from what the sampler reported when it drew the tokens.

The hazard. A sampler decodes from a KV cache and a replay makes one forward, so the two differ in
one format, too. The metrics are H5's, by the functions of the main job, on other tokens.

N sequences, L tokens, T response tokens.
"""

from torch import Tensor

from precision_lib.metrics import rollout
from precision_lib.metrics.measure import Array
from precision_lib.trajectories.replay_record import Figure, NoMismatch, RolloutMismatch
from precision_lib.trajectories.store import Trajectories


def mismatch_sums(policy_logprob: Tensor, frozen: Trajectories) -> dict[str, Array]:
    """Of d, replayed log-prob minus the one that the sampler reported, [N, L-1] each."""
    assert frozen.rollout_logprobs is not None
    difference = policy_logprob.double() - frozen.rollout_logprobs.double()
    return rollout.padded_sums(frozen.response(difference).numpy(), frozen.real.numpy())


def rollout_mismatch(fmt: str, parts: list[dict[str, Array]]) -> RolloutMismatch | NoMismatch:
    """H5's metrics of the replayed policy beside the sampler, or why there are none.

    Args:
        fmt: format of the sampler. parts: :func:`mismatch_sums` of each shard.
    """
    if not parts:
        return NoMismatch(
            None,
            "the trajectories were frozen by a release that did not keep the sampler's log-probs; "
            "freeze again",
        )
    sums = rollout.joined_sums(parts)
    return RolloutMismatch(
        format=fmt,
        sequences=int(sums["sequences"].sum()),
        response_tokens=int(sums["tokens"].sum()),
        metrics={
            name: Figure(value, rollout.MEASURES[name].unit)
            for name, value in rollout.figures(sums).items()
        },
    )
