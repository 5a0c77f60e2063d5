#!/usr/bin/python3
"""Makes a container in an Azure blob store: azure_container.py ENDPOINT ACCOUNT KEY CONTAINER.

Signed with the shared key as the service's documentation says ("Authorize with Shared Key"): nothing that Debian
has and that is small does it.
"""

import base64
import email.utils
import hashlib
import hmac
import sys
import urllib.parse
import urllib.request

endpoint, account, key, container = sys.argv[1:]
path = f"{urllib.parse.urlparse(endpoint).path}/{container}"
headers = {"x-ms-date": email.utils.formatdate(usegmt=True), "x-ms-version": "2021-12-02"}
canonical_headers = "".join(f"{name}:{value}\n" for name, value in sorted(headers.items()))
to_sign = "PUT" + "\n" * 12 + canonical_headers + f"/{account}{path}\nrestype:container"
signature = base64.b64encode(hmac.new(base64.b64decode(key), to_sign.encode(), hashlib.sha256).digest()).decode()
headers["Authorization"] = f"SharedKey {account}:{signature}"
headers["Content-Length"] = "0"
request = urllib.request.Request(f"{endpoint}/{container}?restype=container", method="PUT", headers=headers)
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
with opener.open(request, timeout=20) as answer:
    assert answer.status == 201, answer.status
