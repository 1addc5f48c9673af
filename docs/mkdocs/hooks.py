"""For MkDocs: pages may link to files of the repository that are no pages, as they do on a code host.

Pictures and tables under ``benchmarks/`` come along into the site. Other files are named, not linked.
"""

from __future__ import annotations

import re
from pathlib import Path
from posixpath import normpath, relpath
from typing import Any

from mkdocs.structure.files import File

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)]*)?\)")
_CARRIED = (".png", ".svg", ".csv")


def on_files(files: Any, config: Any) -> Any:
    """Add the files outside of ``docs/`` that pages show or offer."""
    for page in list(files.documentation_pages()):
        text = Path(page.abs_src_path).read_text(encoding="utf-8")
        for _, _, target, _ in _LINK.findall(text):
            path = _outside(page.src_uri, target)
            if path is not None and path.endswith(_CARRIED) and files.get_file_from_path(path) is None:
                files.append(File.generated(config, path, abs_src_path=str(_root(config) / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Point links at the files that came along, and turn those at others into their text."""

    def replaced(match: re.Match[str]) -> str:
        shown, text, target, _ = match.groups()
        path = _outside(page.file.src_uri, target)
        if path is None:
            return match.group()
        if not (_root(config) / path).exists():
            raise FileNotFoundError(f"{page.file.src_uri} links to {path}, which does not exist")
        if path.endswith(_CARRIED):
            return f"{shown}[{text}]({relpath(path, str(Path(page.file.src_uri).parent))})"
        return text if path in text or Path(path).name in text else f"{text} (`{path}`)"

    return _LINK.sub(replaced, markdown)


def _outside(page: str, target: str) -> str | None:
    """The path from the repository's root of a link that leaves ``docs/``; None for others."""
    if "://" in target or target.startswith("/"):
        return None
    path = normpath(f"docs/{Path(page).parent}/{target}")
    return None if path == "docs" or path.startswith("docs/") else path


def _root(config: Any) -> Path:
    return Path(config["config_file_path"]).parent
