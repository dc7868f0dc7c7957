"""Items made ahead by a thread."""

import threading

import pytest

from vidflow.ahead import make_ahead


@pytest.mark.parametrize("num_ahead", [1, 3, 50])
def test_all_items_come_in_order(num_ahead):
    assert list(make_ahead(iter(range(20)), num_ahead=num_ahead)) == list(range(20))
    assert list(make_ahead(iter(()), num_ahead=num_ahead)) == []


def test_the_next_item_is_made_while_the_caller_works():
    made = [threading.Event() for _ in range(3)]

    def items():
        for index, event in enumerate(made):
            event.set()
            yield index

    coming = make_ahead(items())
    assert next(coming) == 0
    assert made[1].wait(timeout=60)
    assert not made[2].wait(timeout=0.2), "more than one item ahead"
    assert list(coming) == [1, 2]


def test_an_error_comes_in_its_place_and_the_thread_ends():
    def items():
        yield 1
        raise KeyError("broken")

    before = threading.active_count()
    coming = make_ahead(items())
    assert next(coming) == 1
    with pytest.raises(KeyError, match="broken"):
        next(coming)
    assert threading.active_count() == before


def test_a_caller_who_stops_early_leaves_no_thread():
    before = threading.active_count()
    coming = make_ahead(iter(range(1000)))
    assert next(coming) == 0
    coming.close()
    assert threading.active_count() == before
