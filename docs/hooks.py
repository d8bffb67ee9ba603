"""MkDocs hooks that support repository links and notebooks.

Pages use the same links as on GitHub, relative to the repository. Linked files outside of `docs/` become pages of the
site under `repository/`, so that the site is self-contained. A notebook becomes a page with its code and outputs, and
is also available as a file.
"""

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

import nbformat
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<=\]\()([^)#:\s]+)(?=(?:#[^)\s]*)?\))")
FENCE = re.compile(r"^ *```", re.MULTILINE)
PLACES = {"CHANGELOG.md": "changelog.md", "README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}
"""Pages for files of the repository that do not follow the general rule."""

LANGUAGES = {
    ".py": "python",
    ".sh": "sh",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".toml": "toml",
    ".json": "json",
    ".cff": "yaml",
}
origins: dict[str, str] = {}
"""The path in the repository of each page."""


def place(path: str) -> str:
    """Return the site's page or file for a path in the repository."""
    if path in PLACES:
        return PLACES[path]
    inside = path.removeprefix("docs/")
    if path.startswith("docs/") and (ROOT / path).is_file():
        return str(PurePosixPath(inside).with_suffix(".md")) if path.endswith(".ipynb") else inside
    is_shown_as_it_is = PurePosixPath(path).suffix in (".md", ".png", ".svg", ".jpg")
    return f"repository/{path}" if is_shown_as_it_is else f"repository/{path}.md"


def targets(markdown: str, origin: str) -> dict[str, str]:
    """Yield the links of a page to files or folders of the repository, with their paths."""
    found = {}
    for link in LINK.findall("".join(FENCE.split(markdown)[::2])):
        path = os.path.normpath(os.path.join(os.path.dirname(origin), link))
        if not path.startswith("..") and (ROOT / path).exists():
            found[link] = path
    return found


def on_files(files: Files, config: Any) -> Files:
    """Add pages for notebooks and for linked files outside of `docs/`."""
    origins.clear()
    origins.update({file.src_uri: f"docs/{file.src_uri}" for file in files.documentation_pages()})
    waiting = [(f"docs/{file.src_uri}", file.content_string) for file in files.documentation_pages()]
    waiting.append(("CHANGELOG.md", ""))
    waiting += [(f"docs/{file.src_uri}", "") for file in files if file.src_uri.endswith(".ipynb")]
    seen = {path for path, text in waiting if text}
    while waiting:
        path, text = waiting.pop()
        if path not in seen:
            seen.add(path)
            source = place(path)
            if files.get_file_from_path(source) is None:
                if not source.endswith(".md"):
                    files.append(File.generated(config, source, abs_src_path=str(ROOT / path)))
                    continue
                text = page_of(path)
                files.append(File.generated(config, source, content=text))
                origins[source] = path
        waiting += [(target, "") for target in targets(text, path).values() if target not in seen]
    return files


def page_of(path: str) -> str:
    """Return the text of a page that shows a file or folder of the repository."""
    source = ROOT / path
    if source.is_dir():
        names = sorted(item.name for item in source.iterdir() if item.is_file())
        return f"# `{path}`\n\n" + "".join(f"- [{name}]({source.name}/{name})\n" for name in names)
    text = source.read_text()
    if path.endswith(".ipynb"):
        return page_of_notebook(text, source.name)
    if path.endswith(".md"):
        return text
    return f"# `{path}`\n\n````{LANGUAGES.get(source.suffix, 'text')}\n{text}\n````\n"


def page_of_notebook(text: str, name: str) -> str:
    """Convert a notebook to Markdown, with the outputs of its cells."""
    parts = []
    for cell in nbformat.reads(text, as_version=4).cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            if output.output_type == "stream":
                parts.append(f"```text\n{output.text.rstrip()}\n```")
            elif "image/png" in output.data:
                parts.append(f"![](data:image/png;base64,{''.join(output.data['image/png'].split())})")
            else:
                parts.append(f"```text\n{output.data['text/plain']}\n```")
    parts.append(f'<a href="../{name}" download>The notebook itself</a>')
    return "\n\n".join(parts) + "\n"


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Replace links to paths in the repository by links to pages of the site."""
    origin = origins.get(page.file.src_uri)
    if origin is None:
        return markdown
    known = targets(markdown, origin)

    def renew(match: re.Match[str]) -> str:
        if match[0] not in known:
            return match[0]
        return os.path.relpath(place(known[match[0]]), os.path.dirname(page.file.src_uri) or ".")

    parts = FENCE.split(markdown)
    fences = FENCE.findall(markdown)
    parts[::2] = [LINK.sub(renew, part) for part in parts[::2]]
    return parts[0] + "".join(fence + part for fence, part in zip(fences, parts[1:], strict=True))
