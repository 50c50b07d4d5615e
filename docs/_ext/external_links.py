"""List the links that leave the site in `external-links.txt` next to it; a build without a network checks none."""

from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

links: set[tuple[str, str]] = set()


def collect(app: Sphinx, document: nodes.document, page: str) -> None:
    """Note the external links of a page."""
    uris = [node.get("refuri", "") for node in document.findall(nodes.reference)]
    links.update((uri, page) for uri in uris if uri.startswith(("http://", "https://")))


def write(app: Sphinx, error: Exception | None) -> None:
    """Write them, sorted, with the page that each is on."""
    text = "".join(f"{uri}  {page}\n" for uri, page in sorted(links))
    Path(app.outdir, "external-links.txt").write_text(text)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the events."""
    app.connect("doctree-resolved", collect)
    app.connect("build-finished", write)
    return {"parallel_read_safe": True}
