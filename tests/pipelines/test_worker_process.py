import sys

from pipelines.worker_process import prepare_worker


class Raises:
    def __init__(self, error):
        self.error = error

    def __del__(self):
        raise self.error


def test_a_worker_that_ends_while_it_deletes_an_object_shows_no_traceback_and_other_errors_do(monkeypatch, capsys):
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)  # restored at the end
    prepare_worker()
    Raises(SystemExit(1))
    assert capsys.readouterr().err == ""
    Raises(ValueError("of ours"))
    assert "ValueError: of ours" in capsys.readouterr().err
