"""Pages that `make docs` makes: README.md as the first one, and the Python interface from the docstrings."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FACE = ROOT / "lib" / "mechint" / "__init__.py"


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """Adds the generated pages; mkdocs calls this before it reads any page."""
    from mkdocs.structure.files import File  # type: ignore[import-not-found]  # there in .venv-docs alone

    for name, text in (("index.md", first_page()), ("api.md", interface())):
        files.append(File.generated(config, name, content=text))
    return files


def first_page() -> str:
    """The text of README.md, with its links as they are from within docs/; what lies elsewhere is named alone."""
    text = re.sub(r"\]\(docs/", "](", (ROOT / "README.md").read_text())
    here = lambda found: found[0] if (ROOT / "docs" / found[2]).exists() else found[1]
    return re.sub(r"(?<!!)\[([^\]]*)\]\(([^)#:]+)\)", here, text)


def interface() -> str:
    """A page with the docstring of everything that ``mechint`` exports."""
    lines = ["# Python", "", "`import mechint` gives:", ""]
    for name, module in exported(FACE.read_text()).items():
        options = f'    options: {{heading: "mechint.{name}", toc_label: "{name}"}}'
        lines += [f"::: mechint.{module}.{name}", options, ""]
    return "\n".join(lines)


def on_page_content(html: str, **_: Any) -> str:
    """Shows lines of an interpreter as code, and references of docstrings without their markup."""
    quoted = (
        r"<blockquote>\s*<blockquote>\s*<blockquote>\s*<p>(.*?)</p>\s*</blockquote>\s*</blockquote>\s*</blockquote>"
    )
    html = re.sub(quoted, lambda found: shown(found[1]), html, flags=re.DOTALL)
    return re.sub(r":(?:func|class|meth|mod|data|attr|exc):<code>~?", "<code>", html)


def shown(lines: str) -> str:
    code = "\n".join(f"&gt;&gt;&gt; {line}" for line in lines.split("\n"))
    return f'<div class="highlight"><pre><code>{code}</code></pre></div>'


def exported(source: str) -> dict[str, str]:
    """The module of each exported name but ``__version__``, in the alphabet's order, from the source of the face.

    Raises:
        ValueError: an exported name is imported nowhere.
    """
    tree = ast.parse(source)
    modules = {
        alias.asname or alias.name: str(node.module)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }
    [names] = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__"
    ]
    wanted = sorted(set(names) - {"__version__"}, key=str.lower)
    if missing := [name for name in wanted if name not in modules]:
        raise ValueError(f"mechint exports {', '.join(missing)}, which it imports nowhere")
    return {name: modules[name] for name in wanted}
