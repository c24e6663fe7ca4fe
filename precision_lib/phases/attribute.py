"""Attribution from end to end: tokens of the FP32 policy, both models, the record and its files."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from precision_lib.attribution.places import knows_kinds
from precision_lib.attribution.study import attribute, number_of_forwards
from precision_lib.faults.modules import MODULE_FAULTS
from precision_lib.forensics.probe import MIN_PROMPTS
from precision_lib.jsonio import to_plain, write_bytes, write_text
from precision_lib.matrix import PrecisionConfig
from precision_lib.models.grid import weights_on_grid
from precision_lib.models.loading import Checkpoint, set_parameters, working_copy
from precision_lib.record.attribution import (
    Architecture,
    AttributionRecord,
    Formats,
    Sequences,
    write_attribution_record,
)
from precision_lib.record.codec import decode
from precision_lib.record.context import Context, run_context
from precision_lib.reporting.attribution import attribution_markdown
from precision_lib.reporting.bar import progress_bar
from precision_lib.reporting.plots.appearance import rendered
from precision_lib.reporting.plots.attribution import attribution_picture
from precision_lib.runtime import deterministic
from precision_lib.trajectories.prompts import (
    check_enough,
    encoded_prompts,
    longest_prompt,
    prompt_order,
    prompts_context,
)
from precision_lib.trajectories.sampling import Responses, sample_responses


@dataclass(frozen=True)
class AttributionSettings:
    """What is measured on.

    Attributes:
        num_prompts: sequences, each of a prompt of its own.
        max_new_tokens: response tokens of each.
        seed: of prompts, responses and resampling.
    """

    num_prompts: int = 16
    max_new_tokens: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_prompts < MIN_PROMPTS:
            raise ValueError(
                f"num_prompts = {self.num_prompts}: an interval over sequences needs at least "
                f"{MIN_PROMPTS}"
            )
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens = {self.max_new_tokens} must be at least 1")


def check_fits(checkpoint: Checkpoint, settings: AttributionSettings) -> None:
    """Refuse too few prompts, and a length that the model has no positions for.

    Raises:
        ValueError: the message says which, and what to do.
    """
    check_enough(checkpoint, settings.num_prompts)
    longest = longest_prompt(checkpoint) + settings.max_new_tokens
    positions = getattr(checkpoint.model.config, "max_position_embeddings", longest)
    if longest > positions:
        raise ValueError(
            f"prompt and response take up to {longest} tokens, the model has {positions} "
            "positions; use fewer --max_new_tokens"
        )


def run_attribute(
    checkpoint: Checkpoint,
    configuration: PrecisionConfig,
    settings: AttributionSettings,
    *,
    planted: str | None = None,
) -> AttributionRecord:
    """Attribute the policy's error in ``configuration``.

    Args:
        configuration: its policy and KL formats are what is tested.
        planted: name of a fault of :data:`MODULE_FAULTS`, in a model that is FP32 otherwise.

    Raises:
        ValueError: prompts or lengths that do not fit, or a fault that this model cannot have.
        NoErrorError, UnknownModelError: as :func:`attribution.study.attribute`.
    """
    check_fits(checkpoint, settings)
    model = checkpoint.model
    kl_format = configuration.kl if planted is None else "fp32"
    tested = _tested(model, configuration.policy, planted)
    responses = _responses(checkpoint, settings)
    with progress_bar("attribute", "forward", number_of_forwards(model, responses)) as bar:
        result = attribute(
            model,
            tested,
            responses,
            kl_format=kl_format,
            seed=settings.seed,
            progress=lambda: bar.update(),
        )
    grid = configuration.policy if configuration.policy in ("bf16", "fp16") else "bf16"
    context = run_context(str(model.device), settings.seed) | {
        "checkpoint": {"name": checkpoint.name, "sha256": checkpoint.sha256},
        "prompts": prompts_context(checkpoint),
        "weights_on_grid": {grid: asdict(weights_on_grid(model, grid))},
    }
    return AttributionRecord(
        decode(Context, to_plain(context)),
        planted,
        Formats(configuration.name, configuration.components),
        Sequences(settings.num_prompts, settings.max_new_tokens, settings.seed),
        Architecture(type(model).__name__, knows_kinds(model)),
        result.power,
        result.kinds,
        result.layers,
        result.closure,
    )


def write_attribution(
    record: AttributionRecord, output_dir: Path, json: Path | None, markdown: Path | None
) -> list[Path]:
    """Write the record, its Markdown and its picture (PNG and SVG); the files."""
    picture = attribution_picture(record)
    json = json or output_dir / "attribution.json"
    markdown = markdown or output_dir / "attribution.md"
    files = {output_dir / f"{picture.name}.{k}": v for k, v in rendered(picture.figure).items()}
    write_attribution_record(json, record)
    write_text(markdown, attribution_markdown(record))
    for path, content in files.items():
        write_bytes(path, content)
    return [json, markdown, *files]


def _tested(model: Any, fmt: str, planted: str | None) -> Any:
    tested = working_copy(model)
    if planted is None:
        set_parameters(tested, model, fmt)
    else:
        MODULE_FAULTS[planted][0](tested)
    return tested


def _responses(checkpoint: Checkpoint, settings: AttributionSettings) -> Responses:
    numbers = prompt_order(checkpoint, settings.num_prompts, settings.seed)
    with deterministic(settings.seed, native_products=True):
        return sample_responses(
            checkpoint.model,
            encoded_prompts(checkpoint, numbers),
            settings.max_new_tokens,
            seed=settings.seed,
            pad=checkpoint.tokenizer.pad_token_id or 0,
        ).to(checkpoint.model.device)
