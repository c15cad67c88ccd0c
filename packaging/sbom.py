"""Makes cyclonedx-gomod's document a function of the source: sbom.py PROGRAM SECONDS BINARY <in >out."""

import datetime
import hashlib
import json
import sys
import uuid

program, seconds, binary = sys.argv[1:]
doc = json.load(sys.stdin)
timestamp = datetime.datetime.fromtimestamp(int(seconds), datetime.timezone.utc)
doc["metadata"]["timestamp"] = timestamp.strftime("%Y-%m-%dT%H:%M:%SZ")
doc["metadata"]["component"]["name"] = program
with open(binary, "rb") as file:
    doc["metadata"]["component"]["hashes"] = [{"alg": "SHA-256", "content": hashlib.sha256(file.read()).hexdigest()}]
for component in doc["components"]:
    if component["name"] == "std":  # the only one whose licence is not among the modules
        component["licenses"] = [{"license": {"id": "BSD-3-Clause"}}]
for tool in doc["metadata"]["tools"]:
    tool.pop("hashes", None)  # of the tool's binary, which notes where it was built
digest = hashlib.sha256(json.dumps(doc, sort_keys=True).encode()).digest()
doc["serialNumber"] = uuid.UUID(bytes=digest[:16], version=4).urn
json.dump(doc, sys.stdout, indent=2)
print()
