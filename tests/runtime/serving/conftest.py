"""What the tests of the server share."""

import pytest


@pytest.fixture(scope="module")
def digits(request):
    """The address and the routes of a server of the digits example."""
    from doubles.live_server import served

    with served(request.getfixturevalue("digits_engine")) as found:
        yield found
