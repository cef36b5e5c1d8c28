"""One table of roles, and when two turns say the same."""

import pytest

from megatron_mixcpt.data.records import ROLES, Message, PreferencePair, ToolCall, is_same


def test_roles_are_four_and_known_in_lower_case() -> None:
    assert set(ROLES.values()) == {"system", "user", "assistant", "tool"}
    assert all(name == name.lower() for name in ROLES)
    assert {role: ROLES[role] for role in ROLES.values()} == {role: role for role in ROLES.values()}


CALL = Message("assistant", "", tool_calls=(ToolCall("f", "{}"),))


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ("yes", "yes", True),
        ("yes", " yes\n", True),
        ("yes", "no", False),
        ("yes", Message("assistant", "yes", reasoning="because"), False),
        (CALL, Message("assistant", ""), False),
    ],
)
def test_equal_sides(chosen: str | Message, rejected: str | Message, expected: bool) -> None:
    sides = [(Message("assistant", side) if isinstance(side, str) else side,) for side in (chosen, rejected)]
    assert PreferencePair((Message("user", "q"),), *sides).has_equal_sides is expected
    assert is_same(*sides) is expected
