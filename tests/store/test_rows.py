import random
from dataclasses import dataclass

import pytest

from vidflow.errors import DamagedError
from vidflow.store.layout import read_listed
from vidflow.store.rows import read_rows, write_rows


@dataclass(frozen=True)
class Person:
    name: str
    age: int
    height: float | None


PEOPLE = [Person("Ada", 36, 1.65), Person("Alan", 41, None)]


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
