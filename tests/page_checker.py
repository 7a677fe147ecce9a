"""A page as a document: what tests of pages look at."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "link", "br"}


class Checker(HTMLParser):
    """Tags balanced, identifiers unique, references and addresses collected."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.wanted: set[str] = set()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            value = value or ""
            if name == "id":
                self.ids.append(value)
            elif name in ("aria-labelledby", "aria-controls"):
                self.wanted |= set(value.split())
            elif name in ("src", "href"):
                self.addresses.append(value)
                self.wanted |= {value[1:]} if value.startswith("#") else set()

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag

    @property
    def sound(self) -> bool:
        """Whether all tags are closed, identifiers unique, references known, and nothing comes from elsewhere."""
        known = len(self.ids) == len(set(self.ids)) and self.wanted <= set(self.ids)
        return not self.open and known and all(address.startswith(("#", "data:")) for address in self.addresses)
