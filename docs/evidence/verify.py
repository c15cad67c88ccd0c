#!/usr/bin/env python3
"""Verifies sevagent's evidence with nothing but the standard library and openssl 3: see docs/evidence.md.

    verify.py evidence.json roots.pem --nonce HEX   (roots.pem: AMD's ARK with ASVK, for a VCEK with ASK)
    verify.py --vectors vectors.json
"""
import argparse, base64, hashlib, json, pathlib, re, ssl, struct, subprocess, sys, tempfile

PROFILE = "tag:sevagent,2026:evidence#2"
MEMBERS = "eat_profile eat_nonce iat purpose binding caller batch report_data report certificates cmw"
TASK = "arn:aws(-[a-z]+)*:ecs:[a-z0-9-]+:[0-9]+:task/([A-Za-z0-9_-]+/)?[0-9a-f-]+"

def check(ok, what):
    if not ok: raise ValueError(what)

# JSON that has one reading: no name twice, no null, plain integers, valid text, bounded depth.
def unique(pairs):
    check(len(dict(pairs)) == len(pairs), "a name stands twice")
    return dict(pairs)
def integer(s):
    check(len(s) < 18 and str(int(s)) == s and abs(int(s)) < 1 << 53, "not an integer of 53 bits")
    return int(s)
def walk(v, depth=1):
    check(v is not None, "a null")
    if isinstance(v, str): v.encode()  # fails for half a surrogate pair
    if isinstance(v, (dict, list)):
        check(depth <= 16, "nested more than 16 deep")
        for item in [*v, *v.values()] if isinstance(v, dict) else v: walk(item, depth + 1)
    return v
def read(file):
    data = pathlib.Path(file).read_bytes()
    check(len(data) <= 256 << 10, "more than 256 KiB")
    numbers = dict.fromkeys(("parse_int", "parse_float", "parse_constant"), integer)
    return walk(json.loads(data.decode(), object_pairs_hook=unique, **numbers))

# The form of a document: exactly these members, each in its one spelling.
def members(d, required, optional=""):
    known = d.keys() - set(optional.split()) if type(d) is dict else None
    check(known == set(required.split()), "missing or unknown members")
    return d
def text(s, pattern, what, most=128):
    check(type(s) is str and len(s) <= most and re.fullmatch(pattern, s), f"{ascii(s)[:80]} is not {what}")
    return s

def claims(d):
    text(d["purpose"], "boot|mtls|client", "a purpose")
    b, who = members(d["binding"], "kind", "spki_sha256"), members(d["caller"], "kind", "uid container_id task_arn")
    kind = text(b["kind"], "none|client|server", "a kind of binding")
    check((kind == "none") == ("spki_sha256" not in b), "spki_sha256 does not go with the kind of binding")
    text(b.get("spki_sha256", "0" * 64), "[0-9a-f]{64}", "a SHA-256")
    kind = text(who["kind"], "host|container|unknown", "a kind of caller")
    uid, container, task = (name in who for name in ("uid", "container_id", "task_arn"))
    check(uid == (kind != "unknown") and container == (kind == "container") and container >= task,
          "the caller's members do not go with its kind")
    check(type(who.get("uid", 0)) is int and 0 <= who.get("uid", 0) < 1 << 32, "not a uid")
    if container: text(who["container_id"], "[0-9a-f]{64}", "a container ID")
    if task: text(who["task_arn"], TASK, "a task's ARN", 400)
    if "instance" in d:
        node = members(d["instance"], "id region account_id")
        text(node["id"], "i-[0-9a-f]{8,17}", "an instance ID")
        text(node["region"], "[a-z]+(-[a-z]+)+-[0-9]+", "a region", 32)
        text(node["account_id"], "[0-9]{12}", "an account ID")
def sha512(label, *parts): return hashlib.sha512(b"sevagent/evidence/v2/" + label + b"\0" + b"".join(parts)).digest()
def leaf(d, nonce):
    b, who, node = d["binding"], d["caller"], d.get("instance", {})
    parts = [d["purpose"].encode(), nonce, b["kind"].encode(), bytes.fromhex(b.get("spki_sha256", ""))]
    parts += [str(who.get(name, "")).encode() for name in ("kind", "uid", "container_id", "task_arn")]
    parts += [node.get(name, "").encode() for name in ("id", "region", "account_id")]
    return sha512(b"leaf", *(struct.pack(">I", len(x)) + x for x in parts))
def root(h, index, path):
    check(type(path) is list and len(path) <= 16, "the path has more than 16 steps")
    check(type(index) is int and 0 <= index < 1 << len(path), "the index does not fit the path")
    for i, step in enumerate(path):
        step = bytes.fromhex(text(step, "[0-9a-f]{128}", "64 bytes in hexadecimal"))
        h = sha512(b"node", step, h) if index >> i & 1 else sha512(b"node", h, step)
    return h
def b64url(raw): return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

def form(d, nonce):  # returns report and certificates of a document whose members agree
    check(d["eat_profile"] == PROFILE, "eat_profile is not " + PROFILE)
    check("nitrotpm" not in d, "nitrotpm, which this verifier cannot verify")
    claims(members(d, MEMBERS, "instance verdict"))
    check(type(d["iat"]) is int and type(d.get("verdict", {})) is dict, "iat or verdict is of another type")
    check(16 <= len(nonce) <= 64 and d["eat_nonce"] == b64url(nonce), "eat_nonce is another nonce")
    report, pem = base64.b64decode(d["report"]), d["certificates"]
    check(base64.b64encode(report).decode() == d["report"], "report is not in canonical base64")
    check(len(report) == 1184 and report[0x34:0x38] == b"\1\0\0\0", "not a report of 1184 bytes, signed with P-384")
    certs = [base64.b64decode(b) for b in re.findall("-----BEGIN CERTIFICATE-----\n([^-]*)-----END", pem)]
    check("".join(map(ssl.DER_cert_to_PEM_cert, certs)) == pem and 1 <= len(certs) <= 8, "not 1 to 8 PEM certificates")
    cmw = {f"certificate-{i}": ["application/pkix-cert", b64url(c), 2] for i, c in enumerate(certs)}
    cmw |= {"__cmwc_t": PROFILE, "report": ["application/vnd.sevagent.sev-snp-report", b64url(report), 4]}
    own = {"__cmwc_t", "report", "certificate-0"}  # certificates behind the first may be left out
    check(own <= d["cmw"].keys() and all(cmw.get(name) == v for name, v in d["cmw"].items()), "cmw says something else")
    check(d["report_data"] == report[0x50:0x90].hex(), "report_data is not the report's REPORT_DATA")
    h = root(leaf(d, nonce), **members(d["batch"], "index path"))
    check(h == report[0x50:0x90], "REPORT_DATA is not for these claims")
    return report, certs

# The report: signed by the first certificate's key, that by AMD, for the TCB that it reports.
def der(tag, body): return bytes([tag, len(body)]) + body
def number(little):  # R or S as a DER INTEGER
    n = int.from_bytes(little, "little")
    return der(2, n.to_bytes(n.bit_length() // 8 + 1, "big"))
def openssl(what, *args):
    run = subprocess.run(["openssl", *args], capture_output=True)
    check(run.returncode == 0, what + ": " + " ".join((run.stdout + run.stderr).decode(errors="replace").split()))
    return run.stdout
def put(path, data):
    path.write_bytes(data)
    return path

def verify(d, roots, nonce):
    report, (own, *_) = form(d, nonce)
    with tempfile.TemporaryDirectory() as tmp:
        tmp = pathlib.Path(tmp)
        cert, signed = put(tmp / "cert", ssl.DER_cert_to_PEM_cert(own).encode()), put(tmp / "signed", report[:0x2A0])
        # The roots alone: unless told otherwise, openssl trusts those of the system too.
        openssl("chain", "verify", "-no-CApath", "-no-CAstore", "-CAfile", roots, cert)
        key = put(tmp / "key", openssl("certificate", "x509", "-in", cert, "-noout", "-pubkey"))
        signature = put(tmp / "signature", der(0x30, number(report[0x2A0:0x2E8]) + number(report[0x2E8:0x330])))
        openssl("signature", "dgst", "-sha384", "-verify", key, "-signature", signature, signed)
    for i, arc in enumerate([1, 2, 4, 5, 6, 7, 3, 8]):  # Milan, Genoa: OID 1.3.6.1.4.1.3704.1.3.arc is REPORTED_TCB[i]
        oid = re.escape(bytes.fromhex("060a2b060104019c780103") + bytes([arc]))
        found = re.findall(oid + rb"(?:\x01\x01\xff)?\x04[\x03\x04]\x02(?:\x01|\x02\x00)(.)", own, re.S)
        check(found == [report[0x180 + i:0x181 + i]], f"certificate and REPORTED_TCB differ (extension 3.{arc})")

def vectors(entries):
    for v in entries:
        for x in v["leaves"]: claims(x)
        leaves, want = [leaf(x, bytes.fromhex(x["nonce"])) for x in v["leaves"]], bytes.fromhex(v["report_data"])
        check(leaves == [bytes.fromhex(x["leaf"]) for x in v["leaves"]], v["name"] + ": a leaf differs")
        for h, p in zip(leaves, v["paths"], strict=True): check(root(h, **p) == want, v["name"] + ": another root")
        while len(leaves) & len(leaves) - 1: leaves.append(sha512(b"pad"))
        while len(leaves) > 1: leaves = [sha512(b"node", *pair) for pair in zip(leaves[::2], leaves[1::2])]
        check(leaves == [want], v["name"] + ": another root of the tree")
    check(entries, "no vectors")

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
for name in "evidence", "roots": p.add_argument(name, nargs="?")
p.add_argument("--nonce", type=bytes.fromhex)
p.add_argument("--vectors")
o = p.parse_args()
if not o.vectors and not (o.roots and o.nonce): p.error("give evidence, roots and --nonce, or --vectors")
try:
    document = read(o.vectors or o.evidence)
    vectors(document) if o.vectors else verify(document, o.roots, o.nonce)
except Exception as e:  # whatever is wrong with a stranger's document, it is not accepted
    sys.exit(f"refused: {type(e).__name__}: {e}" if not isinstance(e, ValueError) else f"refused: {e}")
print("vectors: OK" if o.vectors else "evidence: OK")
