"""An installation by ``pip install .`` works elsewhere: with a compiler, and without one in plain torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mechint
from mechint import scan
from mechint.analyses.options import RunConfig
from mechint.analyses.sparsity.options import SparsityConfig
from mechint.runner.experiment import run_experiment
from mechint.runner.request import Experiment
from mechint.sae import sparse
from mechint.scan import native
from mechint.utils.compiled import Unavailable, compile_library
from tests.helpers.experiments import TASK, checkpoint
from tests.helpers.kconfig_tree import ROOT

SHIPPED = [
    path.relative_to(ROOT / "lib") for path in (ROOT / "lib").rglob("*") if path.suffix in (".c", ".typed", ".txt")
]


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


def test_what_is_installed_holds_every_source_that_is_compiled_later_and_every_template(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    source = copied(tmp_path)
    call("-c", "from setuptools import setup; setup()", "-q", "build_py", "--build-lib", "built", cwd=source)
    built = {path.relative_to(source / "built") for path in (source / "built").rglob("*") if path.is_file()}
    assert native.SOURCE.relative_to(ROOT / "lib") in SHIPPED and sparse.SOURCE.relative_to(ROOT / "lib") in SHIPPED
    assert set(SHIPPED) <= built
    assert {path.relative_to(ROOT / "lib") for path in (ROOT / "lib").rglob("*.py")} <= built


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a wheel that was built and installed without its dependencies, which this environment has."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    pip = ("-m", "pip", "--disable-pip-version-check", "-q")
    built = ("wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), ".")
    call(*pip, *built, cwd=copied(folder / "source"))
    [wheel] = folder.glob("*.whl")
    call(*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel), cwd=folder)
    return folder / "site"


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "compiler"), [("native", ""), ("chunked", "/bin/false")])
def test_an_installed_command_analyses_from_another_directory(
    site: Path, tmp_path: Path, kernel: str, compiler: str
) -> None:
    """With a compiler, and without one: the numbers are those of the checkout."""
    if kernel == "native" and not shutil.which("cc"):
        pytest.skip("no compiler: cc is not installed")
    checkpoint(tmp_path / "model.pt")
    small = "--sparsity-prompts=8 --sparsity-eval-prompts=8 --sparsity-controls=0 --sparsity-bootstrap=100"
    words = (
        f"sparsity --checkpoint=model.pt --task-pairs=2 --task-keys=12 --task-values=12 {small} --device=cpu".split()
    )
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "CC": compiler or os.environ.get("CC", "")}
    plain = ("--no-visualize-heatmaps", "--no-visualize-curves")
    said = call(
        str(site / "bin/mechint"), *words, *plain, "--output-dir=out", cwd=tmp_path, PYTHONPATH=str(site), **environment
    )
    assert "report: out/report.html" in said
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["scan"] == kernel and manifest["git"] is None  # not in a checkout
    config = SparsityConfig(prompts=8, eval_prompts=8, controls=0, bootstrap=100)
    run = RunConfig(
        checkpoint=str(tmp_path / "model.pt"), output_dir=str(tmp_path / "here"), device="cpu", visualize_curves=False,
        visualize_heatmaps=False,
    )  # fmt: skip
    run_experiment(Experiment(run, TASK, {"sparsity": config}))
    for installed, here in zip(*(mechint.results(tmp_path / name).rows() for name in ("out", "here")), strict=True):
        assert installed["entry"] == here["entry"]
        assert installed["value"] == pytest.approx(here["value"], rel=1e-4, abs=1e-6), installed["entry"]
    version = call(str(site / "bin/mechint"), "--version", cwd=tmp_path, PYTHONPATH=str(site)) if compiler else ""
    assert version == (f"mechint {mechint.__version__}\n" if compiler else "")


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
