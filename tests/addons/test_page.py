"""sercli/addons/README.md against the add-ons."""

from pathlib import Path

from sercli.addons import SummaryConfig
from sercli.families import addon_configs
from tests.support.pages import codes, table

PAGE = Path(__file__).parents[2] / "sercli" / "addons" / "README.md"
TITLE = "## What there is"


def test_the_table_has_every_addon_and_its_views():
    configs = addon_configs()
    rows = {codes(name)[0]: (codes(views), of) for name, _, views, of in table(PAGE, TITLE)}
    assert sorted(rows) == sorted(configs)
    for name, (views, of) in rows.items():
        assert tuple(views) == configs[name].view_settings, name
        assert (of == "one vector") == issubclass(configs[name], SummaryConfig), name
