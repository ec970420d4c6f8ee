"""The format of log records."""

from __future__ import annotations

import json
from datetime import datetime

import pytest
from pydantic import ValidationError

from orchestrator.errors import DamagedError, StoreError
from orchestrator.store.records import (
    Fence,
    FileEntry,
    Record,
    data_key,
    decode,
    encode,
)
from orchestrator.store.runlog import RunLog
from tests.unit.store.log_records import FILE, RUN, checkpoint, fence, retire, stamp
from tests.unit.store.memory_store import MemoryStore


class TestFormat:
    """Records are JSON that notices when it was changed."""

    @pytest.mark.parametrize(
        "record",
        [
            fence(1, 1),
            checkpoint(2, 1, 7, metrics={"val/loss": 1.5, "π": -0.0}),
            retire(3, 1, checkpoint(2, 1, 7)),
        ],
    )
    def test_round_trip(self, record: Record) -> None:
        data = encode(record)
        assert decode(data, RUN, record.slot) == record
        assert json.loads(data)["kind"] == record.kind
        assert "retired" not in json.loads(data)

    def test_every_flipped_bit_is_noticed(self) -> None:
        data = encode(checkpoint(2, 1, 7, metrics={"val/loss": 1.5}))
        for position in range(len(data) * 8):
            changed = bytearray(data)
            changed[position // 8] ^= 1 << position % 8
            with pytest.raises(DamagedError):
                decode(bytes(changed), RUN, 2)

    def test_every_truncation_is_noticed(self) -> None:
        data = encode(fence(1, 1))
        for size in range(len(data)):
            with pytest.raises(DamagedError):
                decode(data[:size], RUN, 1)
        with pytest.raises(DamagedError):
            decode(data + b"\n", RUN, 1)

    def test_a_record_in_a_foreign_place(self) -> None:
        data = encode(fence(1, 1))
        for run, slot in ((RUN, 2), ("other", 1)):
            with pytest.raises(DamagedError, match="holds record 1 of run r"):
                decode(data, run, slot)

    def test_a_newer_version_is_not_damage(self) -> None:
        changed = fence(1, 1).model_copy(update={"version": 3})
        with pytest.raises(StoreError, match="format version 3") as caught:
            decode(encode(changed), RUN, 1)
        assert not isinstance(caught.value, DamagedError)
        assert caught.value.remedy

    def test_records_of_version_1_are_read(self) -> None:
        old = fence(1, 1).model_copy(update={"version": 1})
        assert decode(encode(old), RUN, 1) == old

    def test_unknown_fields_and_kinds(self) -> None:
        changed = fence(1, 1).model_copy(update={"kind": "other"})
        with pytest.raises(DamagedError, match="not a valid"):
            decode(encode(changed), RUN, 1)

    @pytest.mark.parametrize(
        "path", ["", "/a", "../a", "a/../b", "a//b", "./a", "a/", "a\0", "x/" * 600 + "x"]
    )
    def test_paths_that_would_escape(self, path: str) -> None:
        with pytest.raises(ValidationError):
            FileEntry(path=path, size=1, sha256="0" * 64)

    @pytest.mark.parametrize(
        ("paths", "data"),
        [
            (["a", "a"], f"runs/{RUN}/data/1/7-x"),
            (["a", "a/b"], f"runs/{RUN}/data/1/7-x"),
            (["a/b/c", "a/b"], f"runs/{RUN}/data/1/7-x"),
            (["a"], "runs/other/data/1/7-x"),
            (["a"], f"runs/{RUN}/data/2/7-x"),
            (["a"], f"runs/{RUN}/data/1/../../x"),
            ([], f"runs/{RUN}/data/1/7-x"),
        ],
    )
    def test_manifests_that_make_no_sense(self, paths: list[str], data: str) -> None:
        files = tuple(FILE.model_copy(update={"path": path}) for path in paths)
        with pytest.raises(ValidationError):
            checkpoint(2, 1, 7, files=files, data=data)

    def test_naive_instants_and_infinite_metrics(self) -> None:
        with pytest.raises(ValidationError):
            Fence(**{**stamp(1, 1), "at": datetime(2026, 1, 1)})
        with pytest.raises(ValidationError):
            checkpoint(2, 1, 7, metrics={"loss": float("inf")})

    def test_keys_of_odd_file_names(self) -> None:
        names = ["a b", "ü", "a%20b", "q?*:<>|", "new\nline", ".hidden", "a/b c/d", "a+b=c@d~,-"]
        keys = [data_key("runs/r/data/1/1-x", name) for name in names]
        assert len(set(keys)) == len(names)
        assert keys[0].endswith("/a%20b")
        assert keys[2].endswith("/a%2520b")
        assert keys[6].endswith("/a/b%20c/d")
        with pytest.raises(StoreError, match="cannot be the key"):
            data_key("runs/r/data/1/1-x", "ü" * 100)

    @pytest.mark.parametrize("run", ["", ".", "..", "a/b", "../x", "a b", "x" * 129, ".x", "é"])
    def test_run_ids_that_cannot_be_keys(self, run: str) -> None:
        with pytest.raises(StoreError, match="cannot be a run id"):
            RunLog(MemoryStore(), run)

    def test_digest_of_a_manifest(self) -> None:
        other = FILE.model_copy(update={"path": "b", "sha256": "1" * 64})
        one, two = checkpoint(2, 1, 7, files=(FILE, other)), checkpoint(3, 1, 8, files=(other, FILE))
        assert one.sha256 == two.sha256 != checkpoint(2, 1, 7).sha256
        assert one.size == 2
