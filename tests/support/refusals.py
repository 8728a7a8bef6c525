"""What a user's mistake says."""

import pytest

from sercli.errors import UserError


def refused(call, *words):
    """`call` raises a UserError of one line that has all `words`; returns the line."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message, message
    for word in words:
        assert word in message, message
    return message
