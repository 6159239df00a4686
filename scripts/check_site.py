"""Check a built site: every link, image and anchor leads somewhere, and nothing is loaded from another place.

    python scripts/check_site.py site      # exit code 1 and one line for each fault

The generator checks links between pages; it does not check images, links to source files, or what pages load.
"""

from __future__ import annotations

import re
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADS = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "link": "href",
}
# elements for which the site's own scripts would fetch something from elsewhere
FETCHES = {"mermaid", "glightbox"}


class Page(HTMLParser):
    """What one page has: its anchors, what it links to, what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.fetches: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take down one element."""
        values = {key: value or "" for key, value in attrs}
        self.ids |= {values[key] for key in ("id", "name") if key in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in LOADS and LOADS[tag] in values:
            self.loads.append(values[LOADS[tag]])
        if values.get("data-md-component") == "source":
            self.fetches.append("the repository's figures")
        self.fetches += FETCHES & set(values.get("class", "").split())


@cache
def read(file: Path) -> Page:
    """Return a page, parsed once."""
    return Page(file.read_text(encoding="utf-8"))


def outside(address: str) -> bool:
    """Return whether an address is on another machine."""
    return address.startswith("//") or urlsplit(address).scheme in ("http", "https")


def faults(site: Path) -> list[str]:
    """Return one line for each fault of the site in this folder."""
    found = []
    for file in sorted(site.rglob("*.html")):
        page, where = read(file), file.relative_to(site)
        found += [f"{where}: loads {address} from elsewhere" for address in page.loads if outside(address)]
        found += [f"{where}: has {name}, which is fetched from elsewhere" for name in page.fetches]
        if file.name == "404.html":  # its addresses depend on where the site is served
            continue
        for address in [*page.links, *page.loads]:
            parts = urlsplit(address)
            if outside(address) or parts.scheme in ("mailto", "data", "javascript"):
                continue
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            if not target.is_file():
                found.append(f"{where}: {address} leads to no file")
            elif parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in read(target).ids:
                found.append(f"{where}: {address}: the page has no such anchor")
    for file in sorted(site.rglob("*.css")):
        text = file.read_text(encoding="utf-8")
        found += [f"{file.relative_to(site)}: loads {url}" for url in re.findall(r"url\(['\"]?(https?:[^)'\"]*)", text)]
    return found


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    problems = faults(folder)
    print(
        "\n".join(problems) or f"{folder}: every link, image and anchor leads somewhere; nothing comes from elsewhere"
    )
    raise SystemExit(bool(problems))
