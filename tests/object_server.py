"""An object store on loopback, by `python object_server.py PORT`: s3:// and, by its XML API, gs://.

Google's XML API and Amazon's differ in how requests are signed, not in what they ask for: moto
serves both once it takes every request for one that is signed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

SIGNED = (
    "AWS4-HMAC-SHA256 Credential=nobody/20200101/us-east-1/s3/aws4_request, "
    "SignedHeaders=host, Signature=none"
)


def main(port: int) -> None:
    """Serve until killed."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple

    served = DomainDispatcherApplication(create_backend_app)

    def signed(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        answer: Iterable[bytes] = served({**environ, "HTTP_AUTHORIZATION": SIGNED}, start)
        return answer

    run_simple("127.0.0.1", port, signed, threaded=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
