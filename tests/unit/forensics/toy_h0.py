"""A hypothesis in 40 lines: do numbers lose 0.1 % of themselves in the KL's format?"""

from collections import Counter

import numpy as np
import torch

from precision_lib.forensics.causal import Paired, Rebatched, Sums
from precision_lib.forensics.evidence import Evidence, Metrics
from precision_lib.forensics.hypothesis import Decision, Given, Hypothesis
from precision_lib.forensics.statistics import Metric, resample
from precision_lib.forensics.study import Study
from precision_lib.forensics.verdicts import Control
from precision_lib.formats import FORMATS, round_to
from precision_lib.matrix import PrecisionConfig, get_configuration
from precision_lib.metrics.direction import RATIO
from precision_lib.metrics.measure import Measure

H0 = Hypothesis(
    decision=Decision(
        *("H0", "stored numbers", "stored_nsr", "", 1e-3, "one number in a thousand is lost"),
        *(("kl",), "bf16_fp32_kl", "fp32_bf16_kl", "bf16_fp32_reward"),
    ),
    metrics={
        "stored_nsr": Measure(lambda t: np.sqrt(t["error2"] / t["signal2"]), "share", RATIO),
    },
    variance_of="of the numbers",
    open=lambda given: Toy(given),
    settings=lambda quick, seed: seed,
    work=lambda planned: Counter(),
)


class Toy(Study):
    hypothesis = H0

    def __init__(self, given: Given) -> None:
        self.numbers = torch.randn(9, 50, generator=torch.Generator().manual_seed(given.settings))
        self.paired = Paired(H0.metrics, resample(np.arange(9), given.settings))

    def measure(self, configuration: PrecisionConfig, run: str = "first") -> Sums:
        error = round_to(self.numbers.double(), FORMATS[configuration.kl]) - self.numbers
        squares = {"error2": error.square(), "signal2": self.numbers.square()}
        return {"tokens": np.full(9, 50.0)} | {k: x.sum(1).numpy() for k, x in squares.items()}

    def rebatched(self, configuration: PrecisionConfig) -> Rebatched:
        return Rebatched(Metric(0.0, 0.0, 0.0, 450, "share"), 0.0)

    def evidence(self, configuration: PrecisionConfig, metrics: Metrics) -> Evidence:
        return Evidence(observed_formats={"kl": configuration.kl})

    def control(self) -> Control:
        return Control(not self.sums(get_configuration("fp32_baseline"))["error2"].any())
