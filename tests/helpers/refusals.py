"""The error line of a checkpoint that cannot be loaded."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mechint import MechintError


def refusal(action: Callable[[], object]) -> str:
    """The message of the error, which must be one line."""
    with pytest.raises(MechintError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    print(message)
    return message
