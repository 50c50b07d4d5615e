"""What the standard library leaves to others: multipart forms, a websocket's frames, connections that break."""

import base64
import hashlib
import json
import re
import socket
import struct

CLOSING = 8
"""Opcode of the frame with which either side says goodbye."""


def form(content_type: str, body: bytes) -> dict[str, bytes]:
    """Fields of a `multipart/form-data` body; raises ValueError when it is none."""
    boundary = re.search(r'boundary="?([^";,]+)"?', content_type)
    if not content_type.startswith("multipart/form-data") or not boundary:
        raise ValueError("the request is no multipart form")
    fields = {}
    for part in body.split(b"--" + boundary.group(1).encode())[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        name = re.search(rb'name="([^"]*)"', head)
        if name:
            fields[name.group(1).decode()] = content.removesuffix(b"\r\n")
    return fields


def accept_header(key: str) -> str:
    """The answer to a websocket handshake, RFC 6455 section 4.2.2."""
    return base64.b64encode(
        hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
    ).decode()


def frame(message: dict | bytes) -> bytes:
    """One whole unmasked frame: text for a status, binary for a result; RFC 6455 section 5.2."""
    opcode, payload = (2, message) if isinstance(message, bytes) else (1, json.dumps(message).encode())
    length = len(payload)
    if length < 126:
        size = bytes([length])
    elif length < 1 << 16:
        size = bytes([126]) + length.to_bytes(2, "big")
    else:
        size = bytes([127]) + length.to_bytes(8, "big")
    return bytes([0x80 | opcode]) + size + payload


def break_off(connection: socket.socket, reset: bool = False) -> None:
    """End a connection in the middle; `reset`: without the goodbye."""
    try:
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
        else:
            connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
