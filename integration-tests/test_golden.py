"""The golden files that the Rust tests read are still what the installed Feast writes."""

import golden


def test_entity_keys_are_what_feast_writes() -> None:
    assert golden.ENTITY_KEYS.read_text() == golden.entity_keys(), "run: python integration-tests/golden.py"


def test_json_is_what_feast_writes() -> None:
    assert golden.JSON_VALUES.read_text() == golden.json_values(), "run: python integration-tests/golden.py"
    assert golden.JSON_RESPONSES.read_text() == golden.json_responses(), "run: python integration-tests/golden.py"
