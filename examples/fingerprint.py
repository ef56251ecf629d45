"""A program that is a capability: JSON comes on stdin, and JSON goes to stdout.

tools.toml declares it. It needs nothing of meshd; any language will do.
"""

import hashlib
import json
import sys

given = json.load(sys.stdin)
text = given["text"].encode()
json.dump({"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}, sys.stdout)
