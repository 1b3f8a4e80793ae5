"""Errors say the same in another process."""

import pickle

from tersor.errors import Unavailable


def test_an_error_is_the_same_after_a_journey() -> None:
    error = Unavailable("no room", got=iter(()), wanted=3, where="here", todo="Make some?")
    error.__cause__ = OSError(28, "No space left on device")
    there = pickle.loads(pickle.dumps(error))
    assert type(there) is Unavailable
    assert str(there) == str(error)
    assert str(there).endswith("Wanted 3. Where: here. Make some?")
    assert (there.what, there.wanted, there.todo) == ("no room", "3", "Make some?")
