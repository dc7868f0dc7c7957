import random
import threading
from dataclasses import dataclass
from typing import Literal

import pytest

from vidflow.errors import DamagedError
from vidflow.store.layout import read_listed
from vidflow.store.rows import read_rows, write_rows


@dataclass(frozen=True)
class Person:
    name: str
    age: int
    height: float | None
    title: Literal["Dr"] | Literal[""] = ""


PEOPLE = [Person("Ada", 36, 1.65), Person("Alan", 41, None, "Dr")]


def test_records_read_back_as_they_were_written(tmp_path):
    write_rows(tmp_path / "a.parquet", Person, PEOPLE)
    assert read_rows(tmp_path / "a.parquet", Person) == PEOPLE


@pytest.mark.parametrize("victim", ["a.parquet", "a.parquet.json"])
def test_a_table_with_any_byte_changed_is_never_read_as_another(tmp_path, victim):
    rng = random.Random(0)
    table, path = tmp_path / "a.parquet", tmp_path / victim
    write_rows(table, Person, PEOPLE)
    whole = {file: file.read_bytes() for file in (table, tmp_path / "a.parquet.json")}
    for _ in range(200):
        for file, data in whole.items():
            file.write_bytes(data)
        place = rng.randrange(len(whole[path]))
        path.write_bytes(
            whole[path][:place] + bytes([whole[path][place] ^ 1 << rng.randrange(8)]) + whole[path][place + 1 :]
        )
        try:
            assert read_rows(table, Person) == PEOPLE
        except DamagedError:
            # Whoever asks what is there learns that the table is to be made again.
            assert read_listed(tmp_path / "a.parquet.json") is None


def test_a_table_without_its_digest_is_not_read(tmp_path):
    write_rows(tmp_path / "a.parquet", Person, PEOPLE)
    (tmp_path / "a.parquet.json").unlink()
    with pytest.raises(DamagedError, match="no digest beside it"):
        read_rows(tmp_path / "a.parquet", Person)


def test_a_reader_beside_a_writer_gets_one_of_its_tables_and_sets_none_aside(tmp_path):
    table, tables = tmp_path / "a.parquet", [PEOPLE[:1], PEOPLE, []]
    write_rows(table, Person, tables[0])
    done = threading.Event()

    def write() -> None:
        for number in range(150):
            write_rows(table, Person, tables[number % 3])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert read_rows(table, Person) in tables
    writer.join()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "a.parquet.json"]


def kill_between(table, people, monkeypatch) -> None:
    """Write a table up to the moment when only its digest has been replaced."""
    replace = type(table).replace

    def die(path, target):
        if target == table:
            raise KeyboardInterrupt
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(type(table), "replace", die)
        with pytest.raises(KeyboardInterrupt):
            write_rows(table, Person, people)


def test_a_kill_between_the_digest_and_the_table_leaves_the_table_before(tmp_path, monkeypatch):
    table = tmp_path / "a.parquet"
    write_rows(table, Person, PEOPLE)
    for people in (PEOPLE[:1], []):  # after the second kill, too
        kill_between(table, people, monkeypatch)
        assert read_rows(table, Person) == PEOPLE
        # Whoever asks what is there learns that the table is to be made again.
        assert read_listed(tmp_path / "a.parquet.json") is None
    write_rows(table, Person, [])
    assert read_rows(table, Person) == []


def test_a_damaged_table_is_not_taken_for_the_one_before(tmp_path, monkeypatch):
    table = tmp_path / "a.parquet"
    write_rows(table, Person, PEOPLE)
    data = bytearray(table.read_bytes())
    data[len(data) // 2] ^= 1
    table.write_bytes(data)
    kill_between(table, [], monkeypatch)
    with pytest.raises(DamagedError, match="its bytes are not those"):
        read_rows(table, Person)
