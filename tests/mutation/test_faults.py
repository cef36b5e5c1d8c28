"""The list of planted faults does not rot: texts and tests that it names are there, and every room has a fault."""

import pytest

from tests.mutation.fault_list import PACKAGE, ROOT, all_faults, missing_test
from tests.unit.room_map import ROOMS

FAULTS = all_faults()
# Rooms without a decision to get wrong, and why.
WITHOUT = {
    "log_names": "names alone",
    "testing": "for the tests alone",
}


@pytest.mark.parametrize("fault", FAULTS, ids=[f"{fault.number}-{fault.room}" for fault in FAULTS])
def test_text_and_tests_are_there(fault) -> None:
    source = (ROOT / fault.file).read_text(encoding="utf-8")
    planted = fault.planted(source)
    assert planted != source
    compile(planted, fault.file, "exec")
    assert fault.tests and not [test for test in fault.tests if missing_test(test)]


def test_faults_differ() -> None:
    places = [(fault.file, fault.text, fault.becomes) for fault in FAULTS]
    assert len(set(places)) == len(places)


def test_a_text_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="0 times, not once"):
        FAULTS[0].planted("something else")
    with pytest.raises(ValueError, match="2 times, not once"):
        FAULTS[0].planted(FAULTS[0].text * 2)
    assert missing_test("tests/mutation/test_faults.py::test_of_nothing") is not None


def test_every_room_has_a_fault() -> None:
    planted = {fault.room for fault in FAULTS if fault.file.startswith(PACKAGE)}
    assert ROOMS.keys() - planted - WITHOUT.keys() == set()
