"""Run the static KL probe from end to end and leave its record behind.

Each cell is on disk before the next one is measured. The record is written whatever happens, and
marked as incomplete where cells are missing.
"""

from collections.abc import Sequence
from pathlib import Path

from precision_lib.forensics.h1.study import open_study
from precision_lib.forensics.probe import ProbeSettings
from precision_lib.matrix import PrecisionConfig
from precision_lib.models.loading import Checkpoint
from precision_lib.models.placement import spread
from precision_lib.record.context import run_context
from precision_lib.record.recorder import Recorder
from precision_lib.reporting.bar import progress_bar


def run_probe(
    checkpoint: Checkpoint,
    settings: ProbeSettings,
    configurations: Sequence[PrecisionConfig],
    output_dir: Path,
) -> Recorder:
    """Measure H1 for every configuration and write ``output_dir/record.json``.

    Raises:
        ValueError: when the settings do not fit the model. OSError: when nothing can be written.
    """
    recorder = Recorder(output_dir / "record.json", configurations)
    recorder.expected = [("H1", c.name) for c in configurations]
    recorder.begin()
    with progress_bar("sampling", "forward") as bar:
        study = open_study(checkpoint, settings, configurations, progress=bar.update)
        bar.set_description("static KL probe")
        bar.reset(study.number_of_forwards(configurations))
        try:
            recorder.context = run_context(str(checkpoint.model.device), settings.seed)
            recorder.context |= study.context() | spread(checkpoint.model)
            for configuration in configurations:
                recorder.add_cell(study.cell(configuration))
            recorder.add_hypothesis(study.verdict())
        finally:
            if recorder.cells:  # an earlier record is worth more than one without cells
                recorder.write()
    return recorder
