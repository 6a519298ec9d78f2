"""The documentation as a site: every page stands in its contents, and every exported name on the page of Python."""

from __future__ import annotations

import ast
import re
from typing import Any

import pytest
import yaml

import mechint
from scripts import docs_site
from tests.helpers.paths import ROOT


def pages(entries: list[Any]) -> list[str]:
    return [page for entry in entries for found in entry.values() for page in
            (pages(found) if isinstance(found, list) else [found])]  # fmt: skip


def test_every_page_stands_in_the_contents_once() -> None:
    found = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(found) == sorted([*(path.name for path in (ROOT / "docs").glob("*.md")), "index.md", "api.md"])


def test_every_exported_name_has_its_docstring_on_the_page() -> None:
    modules = docs_site.exported(docs_site.FACE.read_text())
    assert set(modules) == set(mechint.__all__) - {"__version__"}
    for name, module in modules.items():
        path = ROOT / "lib" / "mechint" / f"{module.replace('.', '/')}.py"
        tree = ast.parse(path.read_text())
        [node] = [each for each in tree.body if getattr(each, "name", None) == name]
        assert isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node), name
        assert f"::: mechint.{module}.{name}\n" in docs_site.interface()
    with pytest.raises(ValueError, match="exports lost, which it imports nowhere"):
        docs_site.exported('from .a import found\n__all__ = ["found", "lost"]\n')


def test_the_first_page_links_within_docs() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", docs_site.first_page())
    assert links and all((ROOT / "docs" / link).exists() for link in links)


def test_docstrings_are_shown_without_their_markup() -> None:
    html = "<blockquote>\n<blockquote>\n<blockquote>\n<p>a = 1\nb</p>\n</blockquote>\n</blockquote>\n</blockquote>"
    made = docs_site.on_page_content(f"{html}<p>From :func:<code>mechint.load</code> and :class:<code>~x.Y</code>.</p>")
    assert "&gt;&gt;&gt; a = 1\n&gt;&gt;&gt; b</code>" in made and "blockquote" not in made
    assert "From <code>mechint.load</code> and <code>x.Y</code>." in made
