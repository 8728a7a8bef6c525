"""The forms of one set, written once a file of tests; lists are kept in a folder of their own."""

import pytest

from tests.support.forms import Written


@pytest.fixture(scope="module", autouse=True)
def _lists_of_its_own(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SER_CACHE", str(tmp_path_factory.mktemp("lists")))
        yield


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return Written(tmp_path_factory.mktemp("forms"))
