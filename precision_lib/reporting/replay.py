"""What a person sees of a replay: the noise floor first, then the errors."""

from precision_lib.trajectories.replay_record import (
    NoMismatch,
    ReplayRecord,
    RolloutMismatch,
    Summary,
    SummedBin,
)

_FLOORS = (
    ("repeated", "the same again"),
    ("reversed", "sequences in reversed order"),
    ("rebatched", "other micro-batches"),
    ("fp32_rebatched", "FP32, other micro-batches"),
    ("fp32_against_frozen", "FP32 here against frozen FP32"),
)


def replay_lines(record: ReplayRecord) -> list[str]:
    """The record of ``trajectories.replay.replay`` as lines of text without colour."""
    about, errors = record.trajectories, record.summary
    components = " ".join(f"{k}={v}" for k, v in record.observed_formats.items())
    lines = [
        f"{record.configuration['name']}: {components}, on {about.sequences} sequences, "
        f"{about.response_tokens} response tokens"
        + ("" if about.complete else " (the frozen run is not complete)"),
        "",
        _row("noise floor, largest |difference|", list(errors)),
    ]
    floors: dict[str, Summary] = {title: getattr(record.noise_floor, k) for k, title in _FLOORS}
    for title, floor in floors.items():
        lines.append(_row(title, [_number(floor[n].max_abs) for n in errors]))
    lines += ["", _row("error against frozen FP32", list(errors))]
    lines.append(_row("RMS", [_number(e.rms) for e in errors.values()]))
    lines.append(_row("mean", [_number(e.mean) for e in errors.values()]))
    lines.append(_row("largest |error|", [_number(e.max_abs) for e in errors.values()]))
    lines.append(_row("not finite", [str(e.nonfinite) for e in errors.values()]))
    return [*lines, "", *_last_lines(record)]


def _last_lines(record: ReplayRecord) -> list[str]:
    lines = []
    for quantity, name in (("policy_logprob", "policy log-prob"), ("log_ratio", "log-ratio")):
        drift = record.by_position[quantity][-1]
        if isinstance(drift, SummedBin) and drift.accumulated.rms is not None:
            lines.append(
                f"accumulated {name} error, tokens {drift.first} to {drift.last}: RMS "
                f"{drift.accumulated.rms:.3g} nats"
            )
    lines += _mismatch_lines(record.rollout_mismatch)
    repeats = record.golden_repeats
    if repeats.applies:
        same = all((repeats.bitwise_equal or {}).values())
        why = f" (other {', '.join(repeats.differs)})" if repeats.differs else ""
        lines.append(f"FP32 replay bitwise equal to the frozen figures: {same}{why}")
    speed = record.throughput
    lines.append(
        f"{speed.tokens_per_second:.0f} tokens/s scored, a bare forward does "
        f"{speed.forward_tokens_per_second:.0f} (ratio {speed.ratio:.2f})"
    )
    return lines


def _mismatch_lines(mismatch: RolloutMismatch | NoMismatch) -> list[str]:
    """The policy beside the sampler, a metric each; or why there is none."""
    if isinstance(mismatch, NoMismatch):
        return [f"rollout mismatch: not measured, {mismatch.reason}"]
    title = f"rollout mismatch, policy minus the {mismatch.format} sampler's log-probs"
    metrics = mismatch.metrics.items()
    return [f"{title}:", *(f"  {name:<32}{m.value:.3g} {m.unit}" for name, m in metrics)]


def _row(title: str, cells: list[str]) -> str:
    return f"{title:<34}" + "".join(f"{c:>18}" for c in cells)


def _number(value: float | None) -> str:
    if value is None:
        return "none finite"
    return "0" if value == 0 else f"{value:.3g}"
