"""An installation by ``pip install .`` works elsewhere: with a compiler, and without one in plain torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mechint import scan
from mechint.sae import sparse
from mechint.scan import native
from mechint.utils.compiled import Unavailable, compile_library
from tests.helpers.kconfig_tree import ROOT

SHIPPED = [path.relative_to(ROOT / "lib") for path in (ROOT / "lib").rglob("*") if path.suffix in (".c", ".typed")]
FORWARD = """
import torch, mechint
from mechint import scan
from mechint.models.mamba import Mamba, MambaConfig
torch.manual_seed(0)
model = Mamba(MambaConfig(vocab_size=16, d_model=8, n_layer=1, d_inner=16, d_state=4)).eval()
with torch.no_grad():
    logits = model(torch.arange(12)[None])
print(mechint.__file__, scan.chosen(), *logits.flatten()[:6].tolist())
"""


def copied(folder: Path) -> Path:
    """The sources in a directory of their own, so that a build leaves nothing in the checkout."""
    shutil.copytree(ROOT / "lib", folder / "lib", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def call(*words: str, cwd: Path, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *words], cwd=cwd, env={**clean, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_installed_holds_every_source_that_is_compiled_later(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    source = copied(tmp_path)
    call("-c", "from setuptools import setup; setup()", "-q", "build_py", "--build-lib", "built", cwd=source)
    built = {path.relative_to(source / "built") for path in (source / "built").rglob("*") if path.is_file()}
    assert native.SOURCE.relative_to(ROOT / "lib") in SHIPPED and sparse.SOURCE.relative_to(ROOT / "lib") in SHIPPED
    assert set(SHIPPED) <= built
    assert {path.relative_to(ROOT / "lib") for path in (ROOT / "lib").rglob("*.py")} <= built


@pytest.mark.exhaustive
def test_a_wheel_runs_from_another_directory_with_and_without_a_compiler(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    (tmp_path / "source").mkdir()
    source = copied(tmp_path / "source")
    pip = ("-m", "pip", "--disable-pip-version-check", "-q")
    call(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), ".", cwd=source)
    [wheel] = tmp_path.glob("*.whl")
    call(*pip, "install", "--no-deps", "--target", str(tmp_path / "site"), str(wheel), cwd=tmp_path)
    said = {}
    for name, compiler in (("native", os.environ.get("CC", "")), ("chunked", "no-such-compiler")):
        place, used, *logits = call(
            "-c", FORWARD, cwd=tmp_path, PYTHONPATH="site", CC=compiler, XDG_CACHE_HOME=str(tmp_path / name)
        ).split()
        assert Path(place).is_relative_to(tmp_path / "site")
        assert used == name or not shutil.which("cc")
        said[name] = torch.tensor([float(number) for number in logits])
    torch.testing.assert_close(said["native"], said["chunked"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("compiler", "source", "says"),
    [
        ("", "missing.c", "missing.c"),
        ('cc "', "native.c", "is not a command line"),
        ("no-such-compiler", "native.c", "no-such-compiler"),
        ("false", "native.c", "could not compile"),
    ],
)
def test_without_compiled_code_plain_torch_serves_and_one_line_says_why(
    compiler: str,
    source: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "SOURCE", native.SOURCE.with_name(source))
    monkeypatch.setattr(scan.choice, "_told", False)
    native.library.cache_clear()
    try:
        with pytest.raises(Unavailable, match=says):
            compile_library(native.SOURCE)
        assert scan.chosen() == scan.chosen() == "chunked"
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("scan: plain torch in place of the faster C one, because") and says in line
    finally:
        monkeypatch.undo()
        native.library.cache_clear()


def test_a_source_that_does_not_compile_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = tmp_path / "count"
    compiler = tmp_path / "compiler"
    compiler.write_text(f"#!/bin/sh\necho x >> {count}\nexit 1\n")
    compiler.chmod(0o755)
    (tmp_path / "some.c").write_text("int one;")
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for _ in range(3):
        with pytest.raises(Unavailable, match="could not compile"):
            compile_library(tmp_path / "some.c")
    assert count.read_text() == "x\n"
