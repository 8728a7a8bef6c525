"""The metric names of sercli/runs/README.md against the contracts of protocols."""

from pathlib import Path

from sercli.protocols import PROTOCOLS
from tests.support.pages import codes, table

PAGE = Path(__file__).parents[2] / "sercli" / "runs" / "README.md"


def told():
    """Protocol → patterns on the page."""
    found, protocol = {}, ""
    for name, metrics, meaning in table(PAGE, "## Metric names"):
        protocol = codes(name)[0] if name else protocol
        assert meaning
        found.setdefault(protocol, []).extend(codes(metrics))
    return found


def test_every_kind_of_metric_is_on_the_page_and_no_other():
    assert list(told()) == list(PROTOCOLS)
    for name, patterns in told().items():
        assert len(set(patterns)) == len(patterns), name
        quantities = {quantity.pattern for quantity in PROTOCOLS[name].quantities}
        # Some are one action of a kind, which has columns by default, or is drawn.
        special = {p for p in quantities if p.rpartition("/")[2] in {"rotation", "hflip", "scale"}}
        assert set(patterns) == quantities - special, name
