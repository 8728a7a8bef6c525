"""Numbers of a result, made again of what was stored of each image."""

from __future__ import annotations

import pytest

from sercli.evals.common import Outcome
from sercli.protocols import contract_of
from sercli.protocols.contract import is_end
from sercli.statistics import MeanRatio


def remade(outcome: Outcome) -> int:
    """Check every number whose contract says how it is made of stored arrays.

    Returns:
        How many there are.
    """
    result, number = outcome.result, 0
    contract = contract_of(str(result.protocol["name"]))
    for metric, value in result.metrics.items():
        reading = contract.read(metric, str(result.protocol["variant"] or ""))
        how = reading.quantity.per_image
        if how is None or value is None or is_end(metric):
            continue
        parts = how.parts({name: outcome.arrays[name] for name in how.arrays(reading)}, reading)
        assert parts is not None, metric
        scale = 100 if reading.quantity.unit == "percent" else 1
        assert scale * MeanRatio(*parts).value == pytest.approx(value, rel=1e-9), metric
        number += 1
    return number
