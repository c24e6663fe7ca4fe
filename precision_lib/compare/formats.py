"""The formats that components were observed to run in, against a baseline.

The hazard. A reference that is loaded in bf16 whatever was asked for gives plausible figures in all
metrics; what its tensors were made of at run time does not.
"""

from precision_lib.compare.baseline import Baseline
from precision_lib.compare.comparison import Comparison
from precision_lib.record.changes import Change
from precision_lib.record.record import Record


def compare_formats(record: Record, baseline: Baseline) -> Comparison:
    """Components that were seen to run in another format than before: narrower is worse."""
    result = Comparison()
    for configuration, seen in record.context.observed_formats.items():
        known = baseline.context.observed_formats.get(configuration, {})
        if record.matrix.get(configuration) != baseline.matrix.get(configuration):
            continue
        for component, after in seen.items():
            before = known.get(component, after)
            if before == after or _size(before) == _size(after):
                continue
            change = Change(
                where="formats",
                configuration=configuration,
                component=component,
                metric="observed format",
                before=before,
                after=after,
                limit=before,
                unit="",
                reason="as the tensors had it at run time",
            )
            smaller = any(a < b for a, b in zip(_size(after), _size(before), strict=True))
            result += Comparison(worse=(change,)) if smaller else Comparison(better=(change,))
    return result


def _size(observed: str) -> tuple[int, int, int]:
    """Significand bits of the narrowest and the widest format seen, and the smallest range.

    ``bf16+fp32`` was both; ``bf16 in fp32`` holds the numbers of bf16.
    """
    from precision_lib.formats import get_format  # imports torch, which collecting does without

    formats = [get_format(seen.split()[0]) for seen in observed.split("+")]
    digits = [fmt.significand_bits for fmt in formats]
    return min(digits), max(digits), min(fmt.emax for fmt in formats)
