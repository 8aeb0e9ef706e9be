"""Creates the Secrets that the system needs, of random bytes, where there are none yet. Never changes one.

Runs once in the cluster, with a right to create Secrets and no right to read any.
"""

import base64
import json
import secrets
import ssl
import sys
import urllib.error
import urllib.request
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
API = "https://kubernetes.default.svc"
TIMEOUT_S = 30.0
CREATED, THERE = 201, 409


def contents() -> dict[str, dict[str, str]]:
    """The Secrets by name."""
    password = secrets.token_urlsafe(32)
    url = f"postgresql://mini_visa:{password}@postgresql:5432/mini_visa"
    return {
        "database": {"password": password, "writer-url": url, "reader-url": url},
        "gateway-keys": {"token-keys": f"1:{secrets.token_hex(32)}\n"},
    }


def create(name: str, data: dict[str, str]) -> int:
    """The status of the answer: created, or there already."""
    manifest = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "mini-visa"}},
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in data.items()},
    }
    namespace = (ACCOUNT / "namespace").read_text()
    request = urllib.request.Request(  # noqa: S310 - API is https
        f"{API}/api/v1/namespaces/{namespace}/secrets",
        data=json.dumps(manifest).encode(),
        headers={
            "Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}",
            "Content-Type": "application/json",
        },
        method="POST",
    )
    trusted = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=trusted) as answer:  # noqa: S310
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        return refused.code


def main() -> int:
    for name, data in contents().items():
        status = create(name, data)
        if status not in (CREATED, THERE):
            print(f"{name}: the API server answered {status}", file=sys.stderr)
            return 1
        print(f"{name}: {'created' if status == CREATED else 'there already'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
