"""The files of an audit: whole or not there, and the same figures when they are read again."""

import json
import math
from dataclasses import fields, replace

import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from audit_planted import plain_rows
from audit_toy import toy_audit

from retrm.audit.tables import ROW_TYPES, AuditTables
from retrm.errors import OutputError, StoreError


@pytest.fixture(scope="module")
def toy():
    return toy_audit()


@pytest.fixture
def folder(toy, tmp_path):
    toy.save(tmp_path / "audit")
    return tmp_path / "audit"


def test_what_was_saved_is_loaded_again_row_by_row(toy, folder):
    again = AuditTables.load(folder)

    assert plain_rows(again) == plain_rows(toy)
    assert all(plain_rows(toy)[name] for name in ROW_TYPES)  # every table has rows in it
    assert again.facts == json.loads(json.dumps(dict(toy.facts)))


def test_numbers_keep_their_kind(folder):
    again = AuditTables.load(folder)

    for name, kind in ROW_TYPES.items():
        for field in fields(kind):
            found = {type(getattr(row, field.name)) for row in getattr(again, name)}
            assert found == {field.type}, (name, field.name)


def test_missing_figures_stay_nan_and_do_not_become_none_or_0(toy, folder):
    again = AuditTables.load(folder)
    places = [i for i, row in enumerate(toy.contrasts) if math.isnan(row.rank_p)]

    assert places
    assert all(math.isnan(again.contrasts[i].rank_p) for i in places)


def test_every_table_is_written_as_parquet_and_as_csv_with_the_same_figures(folder):
    for name, kind in ROW_TYPES.items():
        parquet, csv = (
            pq.read_table(folder / f"{name}.parquet"),
            pa_csv.read_csv(folder / f"{name}.csv"),
        )
        assert parquet.column_names == csv.column_names == AuditTables.columns(name)
        assert parquet.column_names == [field.name for field in fields(kind)]
        assert parquet.num_rows == csv.num_rows > 0


def test_a_table_without_rows_makes_no_file_and_is_loaded_empty(toy, tmp_path):
    replace(toy, interventions=(), energy=()).save(tmp_path / "a")

    assert not (tmp_path / "a" / "energy.csv").exists()
    again = AuditTables.load(tmp_path / "a")
    assert (again.interventions, again.energy) == ((), ())
    assert again.cells


def test_the_summary_is_written_last(toy, tmp_path, monkeypatch):
    # Killed before the end, a folder must not pass for a finished audit.
    def fail(path, value):
        raise OutputError("disk full")

    monkeypatch.setattr("retrm.audit.tables.write_json", fail)
    with pytest.raises(OutputError):
        toy.save(tmp_path / "a")
    assert (tmp_path / "a" / "cells.parquet").is_file()
    with pytest.raises(StoreError, match=r"holds no finished audit.*run retrm audit"):
        AuditTables.load(tmp_path / "a")


def test_a_folder_that_is_no_audit_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(StoreError, match=rf"{tmp_path} holds no finished audit"):
        AuditTables.load(tmp_path)
    (tmp_path / "audit.json").write_text("{")
    with pytest.raises(StoreError, match="no finished audit"):
        AuditTables.load(tmp_path)


def test_an_audit_with_a_field_that_is_no_longer_written_is_loaded(toy, folder):
    summary = json.loads((folder / "audit.json").read_text())
    assert "extra" not in summary
    (folder / "audit.json").write_text(json.dumps({**summary, "extra": {}}))

    assert plain_rows(AuditTables.load(folder)) == plain_rows(toy)


def test_an_audit_of_another_format_is_refused(folder):
    summary = json.loads((folder / "audit.json").read_text())
    (folder / "audit.json").write_text(json.dumps({**summary, "format_version": 99}))

    with pytest.raises(StoreError, match=r"audit format 99; expected 2\. Run the audit again"):
        AuditTables.load(folder)


def test_a_damaged_table_is_refused_by_name(folder):
    (folder / "cells.parquet").write_bytes(b"no parquet")

    with pytest.raises(StoreError, match=r"cannot read .*cells\.parquet"):
        AuditTables.load(folder)


def test_a_table_with_other_columns_is_refused_by_name(folder):
    table = pq.read_table(folder / "spectrum.parquet").rename_columns(["matrix", "index", "value"])
    pq.write_table(table, folder / "spectrum.parquet")

    with pytest.raises(StoreError, match=r"spectrum\.parquet.*value"):
        AuditTables.load(folder)
