from __future__ import annotations

from pathlib import Path

from orchestrator.agent.output import TAIL, OutputLog


def read_all(log: OutputLog, piece: int = 7) -> bytes:
    data = b""
    while part := log.read(len(data), piece):
        data += part
    assert len(data) == log.size
    return data


def test_output_is_the_file_byte_for_byte(tmp_path: Path) -> None:
    file = tmp_path / "o"
    log = OutputLog(file)
    assert log.size == 0
    assert log.read(0, 10) == b""
    file.write_bytes(bytes(range(256)))
    assert read_all(log) == bytes(range(256))
    log.finish()
    assert read_all(log) == bytes(range(256))


def test_too_much_output_keeps_its_beginning_and_its_end(tmp_path: Path) -> None:
    file = tmp_path / "o"
    log = OutputLog(file, limit=1000, slack=500)
    written = b""
    with file.open("ab") as out:
        for number in range(20_000):
            text = b"line %d\n" % number
            out.write(text)
            out.flush()
            written += text
            log.bound()
            assert file.stat().st_size <= 1500 + len(text)
    assert log.size == 1000
    shipped = read_all(log, 300)
    log.finish()
    everything = shipped
    while part := log.read(len(everything), 300):
        everything += part
    assert everything.startswith(written[:1000])
    assert everything.endswith(written[-TAIL:])
    assert b"bytes of output are left out" in everything
    left_out = int(everything[1000:].split(b" bytes of output")[0].split()[-1])
    assert left_out == len(written) - 1000 - TAIL
    assert log.last_lines(2) == ["line 19998", "line 19999"]


def test_last_lines_while_too_much_is_written(tmp_path: Path) -> None:
    file = tmp_path / "o"
    log = OutputLog(file, limit=100, slack=50)
    file.write_bytes(b"a" * 200 + b"\n")
    log.bound()
    with file.open("ab") as out:
        out.write(b"the last\n\n")
    assert log.last_lines(1) == ["the last"]


def test_last_lines_are_bounded(tmp_path: Path) -> None:
    file = tmp_path / "o"
    file.write_bytes(b"x" * 100_000 + b"\nend\n")
    lines = OutputLog(file).last_lines(20, most=500)
    assert lines[-1] == "end"
    assert sum(map(len, lines)) <= 500
