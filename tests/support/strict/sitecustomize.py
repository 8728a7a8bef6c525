"""Imported by every Python process that tests start: a warning of a call of ours is an error there.

`conftest.py` puts this folder on PYTHONPATH; in the tests' own process pyproject.toml says it.
`PYTHONWARNINGS` cannot: it knows whole names of modules, no packages.
"""

import warnings

for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning, UserWarning):
    warnings.filterwarnings("error", category=category, module=r"sercli\.")
