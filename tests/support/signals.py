"""Signals of a test: `ser` handles them inside, and who handled them before does so after."""

import contextlib
import signal

from sercli import signals


@contextlib.contextmanager
def handled(install=signals.install):
    """Handlers as in a process of `ser`'s own."""
    before = {number: signal.getsignal(number) for number in signals._NUMBERS}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may themselves run under nohup
        install()
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signals._state = signals._State()
