"""What tests of views share."""

import pytest

from sercli import distributed


@pytest.fixture
def ranks(monkeypatch):
    """Pretend to be one rank of several."""

    def pretend(rank, world):
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "world_size", lambda: world)

    return pretend
