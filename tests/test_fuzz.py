"""What the fuzzer has kept is understood or refused, and nothing else."""

import json
from pathlib import Path

import fuzz
import pytest

CORPUS = Path(__file__).parent / "corpus"


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_the_corpus(tmp_path, name):
    target, file = fuzz.TARGETS[name]
    outcomes = [target(path.read_bytes(), tmp_path / file) for path in (CORPUS / name).iterdir()]
    assert outcomes.count("understood") > 3
    assert outcomes.count("refused") > 20


def test_the_targets_see_what_is_wrong(tmp_path, monkeypatch):
    whole = (CORPUS.parent / "files/format-2/classifier.safetensors").read_bytes()
    assert fuzz.model(fuzz.RAW + whole, tmp_path / "m") == "understood"
    assert fuzz.model(fuzz.RAW + whole[:-1], tmp_path / "m") == "refused"
    half = fuzz.half_a_run().description
    text = json.dumps({name: value for name, value in half.items() if name != "settings"})
    assert fuzz.checkpoint(b"s\0\0" + text.encode(), tmp_path / "c") == "understood"
    assert fuzz.checkpoint(b"s\0\1" + text.encode(), tmp_path / "c") == "refused"
    assert fuzz.checkpoint(b"s\0\0{}", tmp_path / "c") == "refused"
    assert fuzz.checkpoint(b"r" + whole, tmp_path / "c") == "refused"
    assert fuzz.csv(b"a,b\n1,2\n3,4\n", tmp_path / "t.csv") == "understood"
    assert fuzz.csv(b"a,b\n1\n", tmp_path / "t.csv") == "refused"

    def broken(path, device):
        raise KeyError("layers")

    with monkeypatch.context() as patch:
        patch.setattr("xpmlp.training.check_alike", lambda *_: None)
        forged = json.loads(text)
        forged["callbacks"][0][1]["_best"] = "x"
        with pytest.raises(IndexError):
            fuzz.checkpoint(b"s\0\0" + json.dumps(forged).encode(), tmp_path / "c")
    monkeypatch.setattr("xpmlp.load", broken)
    with pytest.raises(KeyError):
        fuzz.model(fuzz.RAW + whole, tmp_path / "m")
