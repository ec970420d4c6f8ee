"""Text from a checkpoint is a function of the weights and the arguments."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.unit.trainer.support import start, tiny, write_text
from trainer.data import Vocabulary
from trainer.errors import UserError
from trainer.model import GPT
from trainer.sample import generate, load_model, main


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    training, _ = start(tiny(write_text(folder), max_steps=3), folder)
    assert training.run() == 0
    return folder / "step-00000003"


def test_a_loaded_model_has_the_saved_weights(saved: Path) -> None:
    model, state = load_model(saved)
    assert state.step == 3
    assert not model.training
    probe = torch.zeros(1, 8, dtype=torch.long)
    assert torch.equal(model(probe)[0], load_model(saved)[0](probe)[0])


def test_the_same_seed_gives_the_same_text(saved: Path) -> None:
    model, state = load_model(saved)
    vocabulary = Vocabulary(state.vocabulary)
    first, again, other = (generate(model, vocabulary, tokens=60, prompt="abc", seed=s) for s in (1, 1, 2))
    assert first == again != other
    assert first.startswith("abc")
    assert len(first) == 63


def test_top_k_one_takes_the_likeliest() -> None:
    model = GPT(tiny(Path("unused"), dropout=0.0), 5, seed=1).eval()
    text = generate(model, Vocabulary("abcde"), tokens=1, prompt="ab", top_k=1)
    assert text[-1] == "abcde"[int(model(torch.tensor([[0, 1]]))[0][0, -1].argmax())]


def test_a_prompt_longer_than_the_context(saved: Path) -> None:
    model, state = load_model(saved)
    assert len(generate(model, Vocabulary(state.vocabulary), tokens=5, prompt="ab" * 20)) == 45


def test_sampling_ends_when_asked(saved: Path) -> None:
    model, state = load_model(saved)
    assert generate(model, Vocabulary(state.vocabulary), tokens=50, prompt="a", stop=lambda: True) == "a"


def test_unknown_characters_in_a_prompt(saved: Path) -> None:
    model, state = load_model(saved)
    with pytest.raises(UserError, match="does not know 'É'"):
        generate(model, Vocabulary(state.vocabulary), tokens=1, prompt="É")


def test_the_command(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(saved), "--tokens", "20", "--prompt", "ab", "--seed", "3"]) == 0
    text = capsys.readouterr().out
    assert len(text) == 2 + 20 + 1
    assert main([str(saved), "--tokens", "20", "--prompt", "ab", "--seed", "3"]) == 0
    assert capsys.readouterr().out == text


def test_a_run_reference_is_for_orch(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["laptop@2000"]) == 78
    assert "orch sample laptop@2000" in capsys.readouterr().err


def test_a_directory_without_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert "cannot read state.json" in capsys.readouterr().err
