"""How many examples a conformance check draws; imports neither torch nor the checks."""

from hypothesis import HealthCheck, Phase, settings

_COMMON = settings(
    deadline=None,  # a first call loads kernels and takes seconds
    database=None,  # what was found is pinned in the code, not in a hidden folder
    print_blob=True,
    report_multiple_bugs=False,  # one check, one finding
    phases=(Phase.explicit, Phase.generate, Phase.target, Phase.shrink),
    # A case of 150,000 logits is slow and large on purpose, and a slow core is not an error here.
    suppress_health_check=(
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.large_base_example,
    ),
)
#: The same examples in every run.
CI = settings(_COMMON, max_examples=25, derandomize=True)
#: The first of these, for --quick: two where a check draws few, the simplest and another one.
QUICK = settings(CI, max_examples=8)
#: New examples in every run, many of them.
EXPLORE = settings(_COMMON, max_examples=1000, derandomize=False)


def examples_of(cost: float, profile: settings) -> int:
    """How many examples a check draws.

    Args:
        cost: share of the profile's number.
    """
    fewest = 2 if profile.max_examples == QUICK.max_examples else 3
    return max(fewest, round(cost * profile.max_examples))
