#!/usr/bin/env python3
"""Verifies sevagent's evidence with nothing but the standard library and openssl 3: see docs/evidence.md.

    verify.py evidence.json roots.pem --nonce HEX   (roots.pem: AMD's ARK with ASVK, for a VCEK with ASK)
    verify.py --vectors vectors.json
"""
import argparse, base64, hashlib, json, pathlib, re, ssl, struct, subprocess, sys, tempfile

def check(ok, text):
    if not ok: raise ValueError(text)

def sha512(label, *parts): return hashlib.sha512(b"sevagent/evidence/v2/" + label + b"\0" + b"".join(parts)).digest()

def lp(x): return struct.pack(">I", len(x)) + x

def leaf(d, nonce):
    binding, who, node = d["binding"], d["caller"], d.get("instance", {})
    key = bytes.fromhex(binding.get("spki_sha256", ""))
    check(len(key) == {"none": 0, "client": 32, "server": 32}[binding["kind"]], "spki_sha256 does not go with the kind of binding")
    caller = who["kind"], "%d" % who["uid"] if "uid" in who else "", who.get("container_id", ""), who.get("task_arn", "")
    texts = *caller, node.get("id", ""), node.get("region", ""), node.get("account_id", "")
    parts = d["purpose"].encode(), nonce, binding["kind"].encode(), key, *(t.encode() for t in texts)
    return sha512(b"leaf", *map(lp, parts))

def root(h, index, path):
    check(len(path) <= 16 and 0 <= index < 1 << len(path), "the index does not fit the path")
    for i, step in enumerate(map(bytes.fromhex, path)):
        check(len(step) == 64, "a step of the path is not 64 bytes")
        h = sha512(b"node", step, h) if index >> i & 1 else sha512(b"node", h, step)
    return h

def integer(little):  # R or S as a DER INTEGER
    n = int.from_bytes(little, "little")
    body = n.to_bytes(n.bit_length() // 8 + 1, "big")
    return bytes([2, len(body)]) + body

def openssl(what, *args):
    run = subprocess.run(["openssl", *args], capture_output=True)
    check(run.returncode == 0, what + ": " + " ".join((run.stdout + run.stderr).decode(errors="replace").split()))
    return run.stdout

def put(path, data):
    path.write_bytes(data)
    return path

def verify(d, roots, nonce):
    check(d["eat_profile"] == "tag:sevagent,2026:evidence#2", "unknown eat_profile")
    check(16 <= len(nonce) <= 64, "a nonce has 16 to 64 bytes")
    check(d["eat_nonce"] == base64.urlsafe_b64encode(nonce).rstrip(b"=").decode(), "eat_nonce is another nonce")
    report = base64.b64decode(d["report"], validate=True)
    check(len(report) == 1184 and report[0x34:0x38] == b"\1\0\0\0", "not a report of 1184 bytes, signed with ECDSA P-384")
    check(report[0x50:0x90] == root(leaf(d, nonce), d["batch"]["index"], d["batch"]["path"]), "REPORT_DATA is not for these claims")
    signature = integer(report[0x2A0:0x2E8]) + integer(report[0x2E8:0x330])
    pem = re.search("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", d["certificates"], re.S)[0]  # the first is the key's
    with tempfile.TemporaryDirectory() as tmp:
        tmp = pathlib.Path(tmp)
        cert = put(tmp / "cert", pem.encode())
        # The roots alone: unless told otherwise, openssl trusts those of the system too.
        openssl("chain", "verify", "-no-CApath", "-no-CAstore", "-CAfile", roots, cert)
        key = put(tmp / "key", openssl("certificate", "x509", "-in", cert, "-noout", "-pubkey"))
        signature = put(tmp / "signature", bytes([0x30, len(signature)]) + signature)
        openssl("signature", "dgst", "-sha384", "-verify", key, "-signature", signature, put(tmp / "signed", report[:0x2A0]))
    der = ssl.PEM_cert_to_DER_cert(pem)
    for i, arc in enumerate([1, 2, 4, 5, 6, 7, 3, 8]):  # Milan, Genoa: 1.3.6.1.4.1.3704.1.3.arc is byte i of REPORTED_TCB
        oid = re.escape(bytes.fromhex("060a2b060104019c780103") + bytes([arc]))
        found = re.findall(oid + rb"(?:\x01\x01\xff)?\x04[\x03\x04]\x02(?:\x01|\x02\x00)(.)", der, re.S)
        check(found == [report[0x180 + i:0x181 + i]], f"the certificate is for another TCB than REPORTED_TCB (extension 3.{arc})")

def vectors(entries):
    for v in entries:
        leaves = [leaf(x, bytes.fromhex(x["nonce"])) for x in v["leaves"]]
        check(leaves == [bytes.fromhex(x["leaf"]) for x in v["leaves"]], v["name"] + ": a leaf differs")
        for h, p in zip(leaves, v["paths"], strict=True):
            check(root(h, p["index"], p["path"]) == bytes.fromhex(v["report_data"]), v["name"] + ": a path leads elsewhere")
        while len(leaves) & len(leaves) - 1: leaves.append(sha512(b"pad"))
        while len(leaves) > 1: leaves = [sha512(b"node", *pair) for pair in zip(leaves[::2], leaves[1::2])]
        check(leaves == [bytes.fromhex(v["report_data"])], v["name"] + ": the tree has another root")
    check(entries, "no vectors")

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("evidence", nargs="?")
p.add_argument("roots", nargs="?")
p.add_argument("--nonce", type=bytes.fromhex)
p.add_argument("--vectors")
o = p.parse_args()
if not o.vectors and not (o.roots and o.nonce): p.error("give evidence, roots and --nonce, or --vectors")
try:
    with open(o.vectors or o.evidence, encoding="utf-8") as f: document = json.load(f)
    vectors(document) if o.vectors else verify(document, o.roots, o.nonce)
except Exception as e:  # whatever is wrong with a stranger's document, it is not accepted
    sys.exit(f"refused: {type(e).__name__}: {e}" if not isinstance(e, ValueError) else f"refused: {e}")
print("vectors: OK" if o.vectors else "evidence: OK")
