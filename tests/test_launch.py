"""The place of a process among those that torchrun starts."""

from __future__ import annotations

import pytest

from gradlens.errors import ConfigError
from gradlens.launch import Launch, read_launch


def test_the_place_of_a_process_is_read() -> None:
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    assert read_launch({}) == read_launch({"WORLD_SIZE": "2", "RANK": "1"}) == Launch()
    assert read_launch({**address, "WORLD_SIZE": "1", "RANK": "0"}) == Launch()
    assert read_launch({**address, "WORLD_SIZE": "2", "RANK": "1"}) == Launch(1, 1, 2, 2)
    local = {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert read_launch({**address, **local, "WORLD_SIZE": "4", "RANK": "3"}) == Launch(3, 1, 4, 2)
    with pytest.raises(ConfigError, match="WORLD_SIZE must be a whole number, got 'two'"):
        read_launch({**address, "WORLD_SIZE": "two", "RANK": "1"})
