"""Intervals and tests for tables: over images, over seeds, over rounds of a benchmark.

NumPy and SciPy's distributions only. Proportions are in 0…1 here; tables multiply by 100. How often
each interval holds, and what each test finds, is simulated in tests/statistics.
"""

from sercli.statistics.intervals import (
    CONFIDENCE,
    Interval,
    Ratio,
    Spread,
    jackknife_interval,
    mean_interval,
    median_interval,
    paired_ratio,
    resampled_ends,
    spread,
    wilson_interval,
)
from sercli.statistics.paired import (
    PairedSeeds,
    PairedTest,
    difference_interval,
    holm_adjusted,
    mcnemar_p_value,
    paired_seeds,
    paired_test,
)
from sercli.statistics.power import power_of_paired_test, smallest_difference
from sercli.statistics.ratios import MeanRatio, PairedRatios, paired_ratios

__all__ = [
    "CONFIDENCE",
    "Interval",
    "MeanRatio",
    "PairedRatios",
    "PairedSeeds",
    "PairedTest",
    "Ratio",
    "Spread",
    "difference_interval",
    "holm_adjusted",
    "jackknife_interval",
    "mcnemar_p_value",
    "mean_interval",
    "median_interval",
    "paired_ratio",
    "paired_ratios",
    "paired_seeds",
    "paired_test",
    "power_of_paired_test",
    "resampled_ends",
    "smallest_difference",
    "spread",
    "wilson_interval",
]
