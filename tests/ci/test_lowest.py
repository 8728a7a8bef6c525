"""`.ci/lowest.txt` has what `pyproject.toml` promises: CI tests these releases, and no others."""

import re
import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.paths import ROOT

# Run beside the tests, not by them.
TOOLS = {"ruff", "mypy", "pandas-stubs", "types-pyyaml", "import-linter"}


def lowest_promised():
    """Package → its lower bound, over all dependencies and extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"]]
    lines += [line for name, extra in extras.items() if name != "dev-all" for line in extra]
    bounds = {}
    for requirement in map(Requirement, lines):
        name = canonicalize_name(requirement.name)
        found = {s.version for s in requirement.specifier if s.operator == ">="}
        bounds.setdefault(name, set()).update(found)
    return {name: found for name, found in bounds.items() if name not in TOOLS}


def test_the_lowest_releases_are_those_promised():
    text = (ROOT / ".ci" / "lowest.txt").read_text()
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)$", text, flags=re.M))
    assert len(pinned) == sum(not line.startswith("#") for line in text.splitlines())
    promised = lowest_promised()
    assert pinned.keys() == promised.keys()
    for name, bounds in promised.items():
        assert len(bounds) == 1, f"{name}: {bounds}"  # the same bound wherever it stands
        (bound,) = bounds
        assert padded(pinned[name]) == padded(bound), name


def padded(version):
    """2.10 and 2.10.0 are one release."""
    numbers = [int(part) for part in version.split(".")]
    return numbers + [0] * (4 - len(numbers))


def test_the_tests_extra_has_bounds_too():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    clients = map(Requirement, project["optional-dependencies"]["dev-all"])
    assert all(r.specifier or r.extras == {"dev"} for r in clients)
