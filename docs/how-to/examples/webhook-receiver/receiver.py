# SPDX-License-Identifier: MPL-2.0
"""A receiver of webhooks to start from, without dependencies.

It does what receiver.mjs does: see there.
"""

import base64
import hashlib
import hmac
import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MAX_BODY = 1 << 20


def verify(secrets, headers, body, now=None):
    """Tell whether one of the secrets has signed the message, and lately."""
    msg_id, stamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not msg_id or not (stamp.isascii() and stamp.isdigit()):
        return False
    if abs((time.time() if now is None else now) - int(stamp)) > 300:
        return False
    given = headers.get("webhook-signature", "").split(" ")
    for secret in secrets:
        key = base64.b64decode(secret.removeprefix("whsec_"))
        mac = hmac.new(key, f"{msg_id}.{stamp}.".encode() + body, hashlib.sha256).digest()
        want = b"v1," + base64.b64encode(mac)
        if any(hmac.compare_digest(want, got.encode()) for got in given):
            return True
    return False


seen = set()


def receive(headers, body):
    try:
        with open("webhook-secret", encoding="ascii") as f:
            secrets = f.read().split()
    except FileNotFoundError:
        return 503
    if not verify(secrets, headers, body):
        return 401
    if headers["webhook-id"] not in seen:
        with open("events.log", "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as f:
            f.write(body + b"\n")
        seen.add(headers["webhook-id"])
    return 204


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        size = int(self.headers.get("content-length", "0"))
        if size > MAX_BODY:
            self.send_response(413)
        else:
            self.send_response(receive(self.headers, self.rfile.read(size)))
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args):
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "0"))), Handler)
    with open("receiver.url", "w", encoding="ascii") as f:
        f.write(f"http://127.0.0.1:{server.server_port}/\n")
    server.serve_forever()
