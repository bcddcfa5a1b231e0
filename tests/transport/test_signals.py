"""`Deferred`: signals wait, and end the process behind it."""

from __future__ import annotations

import signal

import pytest

from vmstream.transport.signals import Deferred


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_signals_wait(number: signal.Signals, raised: type[BaseException]) -> None:
    handler = signal.getsignal(number)
    seen = []
    with pytest.raises(raised) as caught, Deferred(lambda: seen.append("stop")) as signals:
        signal.raise_signal(number)
        signal.raise_signal(number)
        seen.append("behind")
        assert signals.number == number
        raise OSError  # what the interruption led to
    assert seen == ["stop", "stop", "behind"]
    assert signal.getsignal(number) is handler
    if raised is SystemExit:
        assert caught.value.args == (128 + number,)


def test_without_one() -> None:
    with Deferred() as signals:
        pass
    assert signals.number == 0
