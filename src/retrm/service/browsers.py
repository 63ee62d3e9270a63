"""What a browser is made to send by the page of a stranger: refused where no key protects the server.

A server on the loopback is reached by every page that its owner opens. Two roads lead there:

- the page posts to the server. Browsers name the page's origin in `Sec-Fetch-Site`, or in `Origin`, with every
  such request, which no page can change; other clients send neither.
- the page's own name is made to mean 127.0.0.1 (DNS rebinding), so that the browser takes server and page
  for one. `Host` then holds that name: a loopback server answers to addresses and `localhost` only.

Source: the W3C's Fetch Metadata, section 2.3; the order of the checks is that of Go's CrossOriginProtection.
"""

import ipaddress
from collections.abc import Awaitable, Callable, Collection, Mapping

from starlette.types import ASGIApp, Receive, Scope, Send

from retrm.errors import PageError, RetrmError

_READING = ("GET", "HEAD", "OPTIONS")  # without effect, and other origins cannot read the replies
Refuse = Callable[[RetrmError, Scope, Receive, Send], Awaitable[None]]


class PageGuard:
    """Lets through what no stranger's page has sent.

    Args:
        app: behind it.
        hosts: names that the server answers to beside addresses and `localhost`; None = all.
        refuse: answers a request that is not let through.
    """

    def __init__(self, app: ASGIApp, *, hosts: Collection[str] | None, refuse: Refuse) -> None:
        self.app = app
        self._hosts = hosts
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it before its body is read."""
        if scope["type"] == "http":
            headers = {name.decode("latin-1"): v.decode("latin-1") for name, v in scope["headers"]}
            try:
                check_page(scope["method"], headers, self._hosts)
            except PageError as error:
                await self._refuse(error, scope, receive, send)
                return
        await self.app(scope, receive, send)


def check_page(method: str, headers: Mapping[str, str], hosts: Collection[str] | None) -> None:
    """Refuse a request that a page of another origin has sent.

    Args:
        method: of HTTP.
        headers: by their names in lower case.
        hosts: as for `PageGuard`.

    Raises:
        PageError: it is one.
    """
    host = headers.get("host", "")
    if hosts is not None and not _is_own(_name_of(host), hosts):
        raise PageError(
            f"got the host {host[:100]!r}, which may be a stranger's name for this machine; expected an "
            "address or localhost. Start the server with --known-as NAME, or with a key"
        )
    if method in _READING:
        return
    site = headers.get("sec-fetch-site")
    origin = headers.get("origin")
    if site in ("same-origin", "none"):
        return
    if site is None and (origin is None or origin.partition("://")[2].lower() == host.lower()):
        return
    raise PageError(
        f"a page of another origin ({(origin or 'unknown')[:100]!r}) sent this; expected the server's own "
        "page, or a program. Start the server with a key to let other pages ask"
    )


def _name_of(host: str) -> str:
    """`host` without its port, and an address of version 6 without brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower().removesuffix(".")


def _is_own(name: str, hosts: Collection[str]) -> bool:
    if name == "localhost" or name.endswith(".localhost") or name in hosts:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
