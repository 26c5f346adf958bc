"""The page loads nothing from other hosts, whatever its libraries would like to."""

from typing import Any

from starlette.datastructures import MutableHeaders

POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"


class SameHost:
    """Middleware that forbids browsers requests elsewhere: https://www.w3.org/TR/CSP3/"""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = POLICY
            await send(message)

        await self.app(scope, receive, send_with_policy)
