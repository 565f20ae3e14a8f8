"""What the tests of evaluation share."""

import pytest

from m2kit.runtime.engine import Engine


@pytest.fixture
def interrupted(monkeypatch):
    """From its call on, Ctrl-C comes in the fourth encoding: gives the sizes of all batches, which
    a test may replace by more than four, so that none is interrupted any more."""

    def interrupt():
        plain, calls = Engine.encode, []

        def encode(self, images, **options):
            calls.append(len(images))
            if len(calls) == 4:
                raise KeyboardInterrupt
            return plain(self, images, **options)

        monkeypatch.setattr(Engine, "encode", encode)
        return calls

    return interrupt
