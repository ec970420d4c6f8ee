"""Files that are no specs: a clear answer, quickly, and never anything but SpecError."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.errors import SpecError
from orchestrator.spec import load_spec, parse_spec
from orchestrator.spec import tree as tree_module
from tests.unit.spec.support import MINIMAL, only, parse, problems

LAUGHS = "a: &a [lol]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(20)
)
BROKEN_FILES = {
    "empty": (b"", "expected a spec, got an empty file"),
    "only a comment": (b"# nothing\n", "expected a spec, got an empty file"),
    "only a mark": (b"---\n", "expected a spec, got an empty file"),
    "a list": (b"- a\n", "1:1: expected a mapping such as `name: my-run`, got a list of 1"),
    "a word": (b"hello\n", "1:1: expected a mapping such as `name: my-run`, got 'hello'"),
    "not UTF-8": (b"name: a\nx: \xff\xfe\n", "2:4: expected UTF-8 text"),
    "UTF-16": ("name: a\n".encode("utf-16"), "1:1: expected UTF-8 text"),
    "an ELF header": (b"\x7fELF\x02\x01\x01" + bytes(200), "1:1: expected text, got a control character"),
    "too long": (b"# " + b"x" * 300_000, "expected at most 256 KiB"),
    "brackets": (b"[" * 1_000_000, "expected at most 256 KiB"),
    "brackets that fit": (b"[" * 200_000, "nested more than 32 deep"),
    "braces": (b"{" * 200_000, "nested more than 32 deep"),
    "nested keys": (b"".join(b" " * n + b"a:\n" for n in range(500)), "nested more than 32 deep"),
    "question marks": (b"? " * 100_000, "nested more than 32 deep"),
    "dashes": (b"- " * 100_000, "nested more than 32 deep"),
    "many values": (b"[" + b"1," * 100_000 + b"]", "expected at most 5000 values"),
    "laughs": (LAUGHS.encode(), "anchors such as &a are not allowed"),
    "two documents": (
        b"name: a\ntrainer: {}\n---\nname: b\n",
        "3:1: expected one document, got a second one",
    ),
    "a tab": (b"name: a\n\ttrainer: {}\n", "2:1: not valid YAML"),
    "an open quote": (b'name: "a\n', "not valid YAML"),
    "an open bracket": (b"name: [a\n", "not valid YAML"),
    "a stray colon": (b"name: a: b\n", "1:8: not valid YAML: mapping values are not allowed"),
    "an unknown alias": (b"name: *b\n", "1:7: name: aliases such as *b are not allowed"),
}


@pytest.mark.parametrize("case", BROKEN_FILES)
@pytest.mark.parametrize("loader", ["libyaml", "python"])
def test_a_broken_file_gets_a_clear_answer_quickly(
    case: str, loader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if loader == "python":
        monkeypatch.setattr(tree_module, "_LOADER", yaml.SafeLoader)
    content, expected = BROKEN_FILES[case]
    path = tmp_path / "s.yaml"
    path.write_bytes(content)
    began = time.process_time()
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert time.process_time() - began < (1 if loader == "libyaml" else 5)
    assert expected in str(caught.value)
    assert all(problem.file == str(path) for problem in caught.value.problems)
    assert len(caught.value.problems) <= 101


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(path: Path) -> str:
        with pytest.raises(SpecError) as caught:
            load_spec(path)
        return str(caught.value)

    assert said(tmp_path / "none.yaml") == f"{tmp_path}/none.yaml: no such file"
    assert said(tmp_path) == f"{tmp_path}: expected a file, got a directory"
    assert "cannot be read" in said(tmp_path / ("x" * 300))
    assert "cannot be read" in said(Path("a\0b"))
    os.mkfifo(tmp_path / "fifo")
    assert said(tmp_path / "fifo").endswith("expected a regular file")
    assert said(Path("/dev/zero")) == "/dev/zero: expected a regular file"

    def refuse(*_: object) -> object:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "s.yaml").write_text(MINIMAL)
    monkeypatch.setattr(Path, "open", refuse)
    assert said(tmp_path / "s.yaml") == f"{tmp_path}/s.yaml: cannot be read: Permission denied"


def test_what_yaml_can_do_but_a_spec_may_not() -> None:
    text = (
        "name: !!str a\n"
        "trainer: &t {n_layer: 2}\n"
        "trainer: {}\n"
        "tags:\n"
        "  <<: {a: b}\n"
        "  c: !secret d\n"
        "placement: *t\n"
    )
    assert [(p.line, p.key, p.message.split(" ")[0]) for p in problems(text)] == [
        (1, "name", "tags"),
        (2, "trainer", "anchors"),
        (3, "trainer", "this"),
        (5, "tags", "merge"),
        (6, "tags.c", "tags"),
        (7, "placement", "aliases"),
    ]
    assert (
        only("name: a\nname: b\ntrainer: {}\n").message == "this key is there twice; the first is on line 1"
    )
    assert only('name: a\ntrainer: {n_layer: 2, "n_layer": 3}\n').line == 2


def test_what_is_forbidden_and_what_is_wrong_are_told_together() -> None:
    found = problems("name: a\nname: b\ntrainer:\n  max_stepz: 1\n")
    assert [problem.line for problem in found] == [2, 4]


def test_numbers_and_words_are_what_they_look_like() -> None:
    spec = parse(
        "name: no\nexperiment: on\nretries: 010\n"
        "trainer: {learning_rate: 1e-3, min_lr: 1E-5, compile: yes, max_steps: 1e3, dataset: off}\n"
        "tags: {a: 0010, b: 1e-3, c: true, d: 2024-01-05, e: 12:30:00, f: 1_000, g: '5'}\n"
    )
    assert (spec.name, spec.experiment, spec.retries) == ("no", "on", 10)
    assert spec.trainer is not None
    assert (spec.trainer.learning_rate, spec.trainer.min_lr) == (1e-3, 1e-5)
    assert (spec.trainer.compile, spec.trainer.max_steps, spec.trainer.dataset) == (True, 1000, "off")
    assert list(spec.tags.values()) == ["0010", "1e-3", "true", "2024-01-05", "12:30:00", "1_000", "5"]


def test_arguments_stay_as_they_were_written() -> None:
    spec = parse("name: a\ncommand: {argv: [x, --lr, 1e-3, --n, 007, --on, yes, ~/a]}\n")
    assert spec.command is not None
    assert spec.command.argv == ["x", "--lr", "1e-3", "--n", "007", "--on", "yes", "~/a"]


def test_a_byte_order_mark_and_dos_lines_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: a\r\ntrainer:\r\n  max_stepz: 3\r\n")
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert str(caught.value).startswith(f"{path}:3:3: trainer.max_stepz: unknown key")


def test_half_of_a_surrogate_pair_is_an_error_with_a_place() -> None:
    assert (
        str(only("name: a\nx: \ud800\n")) == "s.yaml:2:4: expected UTF-8 text, got half of a surrogate pair"
    )


def test_messages_stay_on_one_line_and_hold_no_control_characters() -> None:
    found = problems(
        'name: "\\e[31m"\ntrainer: {}\n"a\\nb\\e[0m": 1\ntags: {"\\t": 1}\n', "a\nb=1", "tags.\x1b=1"
    )
    assert len(found) == 5
    assert all(str(problem).isprintable() for problem in found)


WORDS = st.sampled_from(
    [
        *(
            "name",
            "trainer",
            "command",
            "placement",
            "pool",
            "checkpoint",
            "tags",
            "env",
            "argv",
            "n_head",
            "gpu",
        ),
        *(
            "1e-3",
            "0",
            "-1",
            "~",
            "null",
            "yes",
            "true",
            ".inf",
            "0x1",
            "&",
            "*",
            "!",
            "<<",
            "?",
            "-",
            ":",
            ",",
        ),
        *(
            "[",
            "]",
            "{",
            "}",
            "|",
            ">",
            "%",
            "@",
            "`",
            "'",
            '"',
            "\\",
            "#",
            "---",
            "...",
            "\n",
            "\t",
            "é",
            "😀",
        ),
        *("\x00", "\u2028", "a:", "&a", "*a", "!!int", "!!python/none"),
    ]
)
YAMLISH = st.lists(st.one_of(WORDS, st.sampled_from(["\n", "\n  ", ": ", "\n- ", " "])), max_size=60).map(
    "".join
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from(
                ["name", "trainer", "command", "placement", "pool", "argv", "n_head", "tags", "x"]
            ),
            inner,
            max_size=5,
        ),
    ),
    max_leaves=20,
)
BOUNDED = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def dumped(value: object) -> str:
    return str(yaml.dump(value, Dumper=yaml.CSafeDumper, allow_unicode=True))


def accepts_or_explains(text: str, *overrides: str) -> None:
    began = time.process_time()
    try:
        parse_spec(text, "s.yaml", overrides)
    except SpecError as error:
        found = error.problems
    else:
        return
    assert time.process_time() - began < 1
    assert found
    assert all(problem.message and str(problem).isprintable() for problem in found)


@BOUNDED
@given(YAMLISH)
def test_any_text_is_accepted_or_explained(text: str) -> None:
    accepts_or_explains(text)


@BOUNDED
@given(VALUES)
def test_any_values_are_accepted_or_explained(value: object) -> None:
    accepts_or_explains(dumped(value))
    accepts_or_explains(dumped({"name": "a", "trainer": {}, "placement": value}))


@BOUNDED
@given(st.one_of(st.text(), YAMLISH), YAMLISH)
def test_any_override_is_accepted_or_explained(override: str, value: str) -> None:
    accepts_or_explains(MINIMAL, override)
    accepts_or_explains(MINIMAL, f"trainer.max_steps={value}", f"{override}={value}")


@BOUNDED
@given(st.binary(max_size=400))
def test_any_bytes_are_accepted_or_explained(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert caught.value.problems
