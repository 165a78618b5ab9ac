"""Plain HTTP for people: curl, a browser, a script of ten lines.

``POST /models/{model}`` takes a form, a file, a text or JSON and answers JSON; ``GET`` shows the
model, as a page to a browser. ``docs/reference/plain-http.md`` describes it.
"""

from __future__ import annotations

from tidegate.protocols.dialect import Dialect
from tidegate.protocols.plain_http.call import read
from tidegate.protocols.plain_http.paths import LIST, PREFIX
from tidegate.protocols.routing import RoutedPrefix, Routing

ROUTING = Routing(methods=(), prefixes=(RoutedPrefix(PREFIX),), server_paths=(LIST,))

DIALECT = Dialect(name="plain-http", routing=ROUTING, paths=(PREFIX,), read=read)
