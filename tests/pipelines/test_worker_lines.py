import pytest

from pipelines.ray_session import _log_held, _log_lines

STOPPED = [
    "Exception ignored in: <function WeakSet.__init__.<locals>._remove at 0x7f2d315e6520>",
    "Traceback (most recent call last):",
    '  File "/lib/python3.11/_weakrefset.py", line 39, in _remove',
    "    def _remove(item, selfref=ref(self)):",
    "",
    '  File "python/ray/_raylet.pyx", line 712, in ray._raylet.raise_sys_exit_with_custom_error_message',
    "SystemExit: 1",
]


@pytest.fixture
def logged(caplog):
    """Log what workers print, given as batches, and return the lines."""

    def log(*batches, pid=7):
        for lines in batches:
            _log_lines({"pid": pid, "ip": "127.0.0.1", "lines": lines}, None)
        return [record.getMessage().removeprefix(f"worker {pid}: ") for record in caplog.records]

    return log


@pytest.mark.parametrize("cut", range(len(STOPPED)))
def test_a_worker_that_is_stopped_while_it_deletes_an_object_shows_nothing_of_it(logged, cut):
    assert logged(["before", *STOPPED[:cut]], [*STOPPED[cut:], "after"]) == ["before", "after"]


def test_any_other_error_that_nothing_could_catch_is_shown_whole_and_in_order(logged):
    other = [*STOPPED[:-1], "ValueError: of ours"]
    assert logged(other[:3], [*other[3:], *STOPPED, *other]) == [*other, *other]


def test_what_a_worker_did_not_finish_saying_is_shown_in_the_end(logged):
    assert logged(STOPPED[:3]) == []
    _log_held()
    assert logged() == STOPPED[:3]
    assert logged(["next"]) == [*STOPPED[:3], "next"]
