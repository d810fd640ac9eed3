"""The golden files that the Rust tests read are still what the installed Feast writes."""

import golden


def test_entity_keys_are_what_feast_writes() -> None:
    assert golden.ENTITY_KEYS.read_text() == golden.entity_keys(), "run: python integration-tests/golden.py"
