"""Hooks of mkdocs: the navigation, the page of hearth.v1, and links that leave docs/."""

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import protocol
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

TOP = Path(__file__).resolve().parents[2]
PROTOCOL = "api/protocol.md"
# In this order where they exist; other pages of docs/ follow by name.
PAGES = {
    "Hearth": "index.md",
    "A first run": "first-run.md",
    "Overview": "overview.md",
    "Models": "models.md",
    "The page": "page.md",
    "Operations": "operations.md",
    "Systems": "platforms.md",
    "Networking": "networking.md",
    "Planning": "planning.md",
    "Scaling": "scaling.md",
    "Troubleshooting": "troubleshooting.md",
    "Security": "security.md",
    "Benchmarks": "benchmarks.md",
    "Performance notes": "performance.md",
    "Threads and locks": "threads.md",
    "Glossary": "glossary.md",
}
REFERENCE = {
    "Python SDK": "api/client.md",
    "Models": "api/converter.md",
    "Protocol": PROTOCOL,
}
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """Set the navigation to the pages that exist."""
    docs = Path(config.docs_dir)
    known = {*PAGES.values(), *REFERENCE.values()}
    others = sorted(path.name for path in docs.glob("*.md") if path.name not in known)
    pages = [{title: name} for title, name in PAGES.items() if (docs / name).is_file()]
    config.nav = [*pages, *others, {"Reference": [{k: v} for k, v in REFERENCE.items()]}]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the reference of hearth.v1."""
    page = protocol.reference(TOP / "protos")
    files.append(File.generated(config, PROTOCOL, content=page))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Show links to files of the repository outside docs/ as their paths.

    Raises:
        PluginError: a link points to a file that the repository does not have.
    """
    folder = posixpath.dirname(page.file.src_uri)

    def shown(match: re.Match[str]) -> str:
        text, target = match[1], match[2]
        if re.match(r"[a-z]+:", target):
            return match[0]
        path = posixpath.normpath(posixpath.join("docs", folder, target))
        if path.startswith("docs/"):
            return match[0]
        if not (TOP / path).exists():
            raise PluginError(f"docs/{page.file.src_uri} links to {target}, which does not exist")
        return f"{text.strip('`')} (`{path}`)" if text.strip("`") != path else f"`{path}`"

    return LINK.sub(shown, markdown)
