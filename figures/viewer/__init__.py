"""A local viewer of stores in the browser: `posttrace view STORE...`; needs the extra `view` (Panel)."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from posttrace.figures.errors import FigureError

if TYPE_CHECKING:
    import asyncio

ADDRESS = "127.0.0.1"
"""Only this machine can open the viewer."""
PORT = 5006


def view(
    urls: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    port: int = PORT,
    browser: bool = True,
) -> None:
    """Serve a viewer of one store or several on this machine until Ctrl-C.

    Arrays are read slice by slice, as they are shown. Nothing is loaded from another machine, except from the stores.

    Parameters
    ----------
    urls
        Stores: folders, `file://` or `s3://bucket/prefix`.
    port
        Where to serve; 0 for any free port.
    browser
        Open the page in the browser.

    Raises
    ------
    FigureError
        Panel is not installed, the port is in use, or a store is named twice or holds nothing.
    stores.StoreError
        There is no store at a URL, or its data is lost or altered.
    """
    try:
        import panel as pn
    except ImportError:
        raise FigureError("the viewer needs Panel; pip install 'posttrace[view]'") from None
    from posttrace.figures.viewer.app import Viewer, open_stores

    stores = open_stores([urls] if isinstance(urls, str | os.PathLike) else urls)
    port = _free(port)
    server = pn.io.server.get_server(
        lambda: Viewer(stores).view(),
        address=ADDRESS,
        port=port,
        websocket_origin=[f"{ADDRESS}:{port}", f"localhost:{port}"],
        title="posttrace",
    )
    server.io_loop.asyncio_loop.set_exception_handler(_report)
    server.start()
    print(f"viewer: http://{ADDRESS}:{port} (Ctrl-C ends it)", flush=True)
    if browser:
        server.io_loop.add_callback(server.show, "/")
    server.run_until_shutdown()


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Report that a background task failed, unless it failed because its page was closed."""
    from tornado.iostream import StreamClosedError
    from tornado.websocket import WebSocketClosedError

    if not isinstance(context.get("exception"), StreamClosedError | WebSocketClosedError):
        loop.default_exception_handler(context)


def _free(port: int) -> int:
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((ADDRESS, port))
        except (OSError, OverflowError) as fault:
            reason = getattr(fault, "strerror", None) or fault
            raise FigureError(
                f"port {port}: {str(reason).lower()}; choose another --port, 0 for a free one"
            ) from None
        return trial.getsockname()[1]
