from __future__ import annotations

from nhm_sched_plugin.recurring import Recurring


def test_only_what_comes_again_is_kept() -> None:
    memory: Recurring[str, int] = Recurring(10)
    memory.keep("a", 1)
    assert "a" not in memory
    memory.keep("a", 2)
    assert memory == {"a": 2}
    memory.keep("a", 3)
    assert memory == {"a": 3}


def test_it_stays_small_whatever_it_is_asked_to_keep() -> None:
    memory: Recurring[int, int] = Recurring(10)
    for number in range(1000):
        memory.keep(number, number)
        memory.keep(number, number)
        assert len(memory) <= 10
        assert len(memory._once) <= 10
    assert memory


def test_what_comes_again_after_much_else_is_new() -> None:
    memory: Recurring[int, str] = Recurring(10)
    for number in (*range(20), 0):
        memory.keep(number, "")
    assert not memory
