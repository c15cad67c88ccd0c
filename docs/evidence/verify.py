"""Verifies sevagent's evidence with nothing but the standard library and openssl 3: see README.md and docs/evidence.md.

    verify.py --roots ROOTS.pem --nonce HEX (--region REGION | --any-region) [--at TIME] DOCUMENT
"""
import argparse, base64, datetime, hashlib, json, math, pathlib, re, ssl, struct, subprocess, sys, tempfile

class Refused(Exception): pass
def check(ok, what, code="malformed"):
    if not ok: raise Refused(code, what)

# JSON that has one reading: no name twice, no null, plain integers, valid text, bounded depth.
def unique(pairs):
    check(len(dict(pairs)) == len(pairs), "a name stands twice")
    return dict(pairs)
def integer(s):
    check(len(s) < 18 and str(int(s)) == s and abs(int(s)) < 1 << 53, "not an integer of 53 bits")
    return int(s)
def walk(v, depth=1):
    inside = [*v, *v.values()] if type(v) is dict else v if type(v) is list else None
    check(v is not None and (inside is None or depth <= 16), "a null, or nested more than 16 deep")
    for item in inside or (): walk(item, depth + 1)
    return v
def canonical(v): return json.dumps(v, sort_keys=True, separators=(",", ":"))
def read(data):
    if data[:1] == b"0": return carried(data)
    check(len(data) <= 256 << 10, "more than 256 KiB")
    numbers = dict.fromkeys(("parse_int", "parse_float", "parse_constant"), integer)
    d = json.loads(data.decode(), object_pairs_hook=unique, **numbers)
    json.dumps(walk(d), ensure_ascii=False).encode()  # fails for half a surrogate pair
    return d

# The form of a document: exactly these members, each as canonical JSON, with sorted names and without blanks.
PROFILE = "tag:sevagent,2026:evidence#2"
TASK = '(?=.{1,400}",)arn:aws(-[a-z]+)*:ecs:[a-z0-9-]+:[0-9]+:task/([A-Za-z0-9_-]+/)?[0-9a-f-]+'
FORM = {
    "eat_profile": f'"{PROFILE}"', "iat": "-?[0-9]+", "purpose": '"(boot|mtls|client)"', "verdict": "{.*}",
    "eat_nonce": '"[A-Za-z0-9_-]{22,86}"', "certificates": '".*"', "cmw": "{.*}", "report_data": '"[0-9a-f]{128}"',
    "report": '"[A-Za-z0-9+/]{1578}[AEIMQUYcgkosw048]="',  # 1184 bytes
    "nitrotpm": '"[A-Za-z0-9+/]{2,21848}={0,2}"',
    "batch": r'{"index":[0-9]+,"path":\[("[0-9a-f]{128}",?){0,16}\]}',
    "binding": '{"kind":"none"}|{"kind":"(client|server)","spki_sha256":"[0-9a-f]{64}"}',
    "caller": '{"kind":"unknown"}|{"kind":"host","uid":[0-9]+}|'
              f'{{"container_id":"[0-9a-f]{{64}}","kind":"container",("task_arn":"{TASK}",)?"uid":[0-9]+}}',
    "instance": '{"account_id":"[0-9]{12}","id":"i-[0-9a-f]{8,17}","region":"(?=.{1,32}")[a-z]+(-[a-z]+)+-[0-9]+"}'}
def sha512(label, *parts): return hashlib.sha512(b"sevagent/evidence/v2/" + label + b"\0" + b"".join(parts)).digest()
def leaf(d, nonce):
    b, who, node = d["binding"], d["caller"], d.get("instance", {})
    parts = [d["purpose"].encode(), nonce, b["kind"].encode(), bytes.fromhex(b.get("spki_sha256", ""))]
    parts += [str(who.get(name, "")).encode() for name in ("kind", "uid", "container_id", "task_arn")]
    parts += [node.get(name, "").encode() for name in ("id", "region", "account_id")]
    return sha512(b"leaf", *(struct.pack(">I", len(x)) + x for x in parts))
def root(h, index, path):
    check(index < 1 << len(path), "the index does not fit the path")
    for i, step in enumerate(map(bytes.fromhex, path)):
        h = sha512(b"node", step, h) if index >> i & 1 else sha512(b"node", h, step)
    return h
def b64url(raw): return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

def form(d, nonce):  # returns report and certificates of a document whose members agree
    profile = d.get("eat_profile")
    check(type(profile) is not str or profile == PROFILE, "eat_profile is not " + PROFILE, "profile")
    check(d.keys() | {"instance", "nitrotpm", "verdict"} == FORM.keys(), "missing or unknown members")
    for name, value in d.items(): check(re.fullmatch(FORM[name], canonical(value)), name + " has another form")
    check(d["caller"].get("uid", 0) < 1 << 32, "not a uid")
    own = base64.urlsafe_b64decode(d["eat_nonce"] + "==")
    check(b64url(own) == d["eat_nonce"], "eat_nonce is not in canonical base64url")
    report, pem = base64.b64decode(d["report"]), d["certificates"]
    certs = [base64.b64decode(b) for b in re.findall("-----BEGIN CERTIFICATE-----\n([^-]*)-----END", pem)]
    check("".join(map(ssl.DER_cert_to_PEM_cert, certs)) == pem and len(certs) <= 8, "not up to 8 PEM certificates")
    cmw = {f"certificate-{i}": ["application/pkix-cert", b64url(c), 2] for i, c in enumerate(certs)}
    cmw |= {"__cmwc_t": PROFILE, "report": ["application/vnd.sevagent.sev-snp-report", b64url(report), 4]}
    tpm = base64.b64decode(d.get("nitrotpm", ""))
    check(base64.b64encode(tpm).decode() == d.get("nitrotpm", ""), "nitrotpm is not in canonical base64")
    if tpm: cmw["nitrotpm"] = ["application/vnd.sevagent.nitrotpm-document", b64url(tpm), 4]
    first = cmw.keys() & {"__cmwc_t", "report", "certificate-0", "nitrotpm"}  # other certificates may be left out
    same = all(cmw.get(name) == v for name, v in d["cmw"].items())
    check(first <= d["cmw"].keys() and same, "cmw says something else")
    check(d["report_data"] == report[0x50:0x90].hex(), "report_data is not the report's REPORT_DATA")
    check(root(leaf(d, own), **d["batch"]) == report[0x50:0x90], "REPORT_DATA is not for these claims", "report_data")
    check(own == nonce, "eat_nonce is another nonce", "nonce")
    return report, certs, tpm

# The report. Its version and bits are known, and so is its processor, which version 2 does not name.
LINES = {"Milan": range(0x1900, 0x1910), "Genoa": [*range(0x1910, 0x1920), *range(0x19A0, 0x19B0)],
         "Turin": range(0x1A00, 0x1A12)}  # CPUID family and model
def described(r):  # returns the kind of the key and the product line
    def field(at, size): return int.from_bytes(r[at:at + size], "little")
    version = field(0, 4)
    zero = [(0x4C, 0x50), (0x18B, 0x1A0), (0x1EB, 0x1EC), (0x1EF, 0x1F0), (0x208, 0x2A0), (0x330, 0x4A0)]
    zero += [(0x1F8, 0x208)] * (version < 5) + [(0x188, 0x18B)] * (version < 3)
    check(2 <= version <= 5 and field(0x34, 4) == 1 and not any(any(r[a:b]) for a, b in zero), "version", "report")
    check(field(8, 8) >> 26 == 0 and r[0x0A] & 2 and field(0x48, 4) < 8 and r[0x18A] < 16, "reserved bits", "report")
    line = [name for name, models in LINES.items() if r[0x188] << 8 | r[0x189] in models] if version > 2 else [None]
    check(line, "unknown processor", "product")
    return "VLEK" if r[0x48] & 4 else "VCEK", line[0]

# The endorsement key's certificate, which looks like AMD's in everything but numbers and texts.
def inner(data, tags):  # the values in DER, whose tags are as the pattern says: 0x30 is SEQUENCE, the digit 0
    found, values = b"", []
    while data:
        size, start = data[1], 2
        if size > 127: size, start = int.from_bytes(data[2:size - 126], "big"), size - 126
        check(len(data) >= start + size, "not DER", "certificate")
        found, values, data = found + data[:1], [*values, data[start:start + size]], data[start + size:]
    check(re.fullmatch(tags, found, re.S), "other parts than AMD's", "certificate")
    return values
def amd(common, rdns):  # reports whether these are AMD's six names
    names = dict(inner(*inner(rdn, b"0"), b"\6[\x0c\x13]") for rdn in inner(rdns, b"1{6}"))
    return {oid.hex(): value.decode() for oid, value in names.items()} == {
        "550403": common, "550406": "US", "550407": "Santa Clara", "550408": "CA",
        "55040a": "Advanced Micro Devices", "55040b": "Engineering"}
def der_integer(n): return bytes([2, n.bit_length() // 8 + 1]) + n.to_bytes(n.bit_length() // 8 + 1, "big")
def number(value, most=127):
    n = int.from_bytes(value[2:], "big")
    check(n <= most and value == der_integer(n), "not a number", "certificate")
    return n
def ascii_text(value):
    check(value[:1] == b"\x16" and len(value) == 2 + value[1] > 2, "not an IA5String", "certificate")
    return value[2:].decode("ascii")
# RSASSA-PSS with SHA-384; AMD's older ones have a trailer field
PSS = ("06092a864886f70d01010a30(34|39)a00f300d06096086480165030402020500"
       "a11c301a06092a864886f70d010108300d06096086480165030402020500a203020130(a303020101)?")
P384 = bytes.fromhex("301006072a8648ce3d020106052b81040022036200")
def endorsement(cert, kind):
    tbs, algorithm, _ = inner(*inner(cert, b"0"), b"00\3")
    version, serial, algorithm2, issuer, _, subject, key, extensions = inner(tbs, b"\xa0\x0200000\xa3")
    pss = algorithm == algorithm2 and re.fullmatch(PSS, algorithm.hex())
    check(version == b"\2\1\2" and serial[0] < 128 and pss, "algorithm", "certificate")
    check(amd("SEV-" + kind, subject), "not the certificate of a " + kind, "certificate")
    check(key.startswith(P384) and len(key) == 118, "no key on P-384", "certificate")
    entries = [inner(entry, b"\6\4") for entry in inner(*inner(extensions, b"0"), b"0+")]  # critical: three parts
    values = {oid.hex(): value for oid, value in entries}
    check(len(values) == len(entries), "an extension stands twice", "certificate")
    values.pop("551d23", None)  # AuthorityKeyIdentifier
    turin = "2b060104019c78010309" in values
    def take(arc): return values.pop("2b060104019c7801" + arc)
    arcs = ("09 01 02 03 05 06 07 08" if turin else "01 02 04 05 06 07 03 08").split()
    tcb = bytes(number(take("03" + arc), 255 if arc == "08" else 127) for arc in arcs)
    number(take("01"), 255)
    product, identity = ascii_text(take("02")).split("-")[0], ascii_text(take("05")) if kind == "VLEK" else take("04")
    check(kind == "VLEK" or len(identity) == (8 if turin else 64), "a hardware ID of another size", "certificate")
    check(not values, "an extension that AMD's do not have", "certificate")
    return issuer, bytes([0x30, len(key)]) + key, product, turin, tcb, identity

# The evidence that a certificate carries, as the document that says the same.
CMW, TYPE = "2b06010505070123", "application/vnd.sevagent.evidence.v2+cbor"
def cbor(data, at=0, depth=0):  # an item in its shortest form, and where the next one begins
    kind, n, at = data[at] >> 5, data[at] & 31, at + 1
    if n > 23:
        check(n < 28, "an indefinite length")
        size = 1 << n - 24
        n, at = int.from_bytes(data[at:at + size], "big"), at + size
        check(n > 23 if size == 1 else n >> 4 * size, "a number that is longer than it has to be")
    check(kind in (0, 2, 3, 4) and (kind == 0 or n <= len(data) - at) and depth < 3, "other CBOR than ours, or cut off")
    if kind == 0: return n, at
    if kind != 4: return data[at:at + n] if kind == 2 else data[at:at + n].decode(), at + n
    items = []
    for _ in range(n):
        item, at = cbor(data, at, depth + 1)
        items.append(item)
    return items, at
def array(data, size):
    items, end = cbor(data)
    check(type(items) is list and len(items) == size, f"no array of {size}")
    check(end == len(data), "something behind the CBOR")
    return items
def tlv(tag, value):  # DER
    size = len(value).to_bytes(3, "big").lstrip(b"\0") or b"\0"
    return bytes([tag] + [128 + len(size)] * (len(value) > 127)) + size + value
def carried(data):
    fields = inner(inner(*inner(data, b"0"), b"00\3")[0], b"\xa0\x0200000[\x81\x82]*\xa3")
    entries = [inner(entry, b"\6\1?\4") for entry in inner(*inner(fields[-1], b"0"), b"0+")]
    cmw = [entry[1:] for entry in entries if entry[0].hex() == CMW]
    check(len(cmw) == 1 and len(cmw[0]) == 1, "no id-pe-cmw, or twice, or critical")
    value = cmw[0][0]
    check(value[:1] == b"\4", "not the CBOR of id-pe-cmw", "profile")
    octets = inner(value, b"\4")[0]
    check(len(value) <= 3072 and value == tlv(4, octets), "a value that is too long, or not DER")
    media, evidence, indicator = array(octets, 3)
    check(media == TYPE, ascii(media)[:80] + " is not " + TYPE, "profile")
    check(indicator == 6, "not the indicator of evidence and endorsements")
    nonce, iat, kind, key, uid, node, index, path, report, cert = array(evidence, 10)
    check(type(iat) is int and iat < 1 << 53, "iat is not a number of 53 bits")
    check(kind in ("client", "server"), "no binding")
    check(type(node) is type(path) is list and len(node) in (0, 3), "no list of names, or of steps")
    check(key == hashlib.sha256(tlv(0x30, fields[6])).digest(), "not the certificate's own key", "binding")
    document = {"eat_profile": PROFILE, "eat_nonce": b64url(nonce), "iat": iat, "purpose": "mtls",
                "binding": {"kind": kind, "spki_sha256": key.hex()}, "caller": {"kind": "host", "uid": uid},
                "batch": {"index": index, "path": [step.hex() for step in path]},
                "report_data": report[0x50:0x90].hex(), "report": base64.b64encode(report).decode(),
                "certificates": ssl.DER_cert_to_PEM_cert(cert),
                "cmw": {"__cmwc_t": PROFILE, "certificate-0": ["application/pkix-cert", b64url(cert), 2],
                        "report": ["application/vnd.sevagent.sev-snp-report", b64url(report), 4]}}
    return {**document, "instance": dict(zip(("id", "region", "account_id"), node))} if node else document

def openssl(*args, stdin=b""):
    run = subprocess.run(["openssl", *args], input=stdin, capture_output=True)
    return run.returncode == 0, " ".join((run.stdout + run.stderr).decode(errors="replace").split())
def ecdsa(r, s, order): return tlv(0x30, b"".join(der_integer(int.from_bytes(n, order)) for n in (r, s)))
def signed(tmp, key, signature, data):  # openssl's answer
    pathlib.Path(tmp, "key").write_bytes(key)
    pathlib.Path(tmp, "sig").write_bytes(signature)
    files = "-verify", tmp + "/key", "-signature", tmp + "/sig"
    return openssl("dgst", "-sha384", "-keyform", "DER", *files, stdin=data)

# The document of a NitroTPM, a COSE_Sign1. AWS writes its maps without a length, and null for what is not there.
def aws(data, at=0, depth=0):  # an item, and where the next one begins
    kind, n, at = data[at] >> 5, data[at] & 31, at + 1
    many = n == 31 and kind in (4, 5)
    if n > 23 and not many:
        check(n < 28, "no length")
        size = 1 << n - 24
        n, at = int.from_bytes(data[at:at + size], "big"), at + size
    check(kind != 6 and depth < 6 and len(data) - at >= (n if kind in (2, 3) else 0), "a tag, cut off, or too deep")
    if kind < 4: return ((n, ~n, data[at:at + n], data[at:at + n])[kind], at + (n if kind > 1 else 0))
    if kind == 7: return None if n == 22 else (n,), at
    items = []
    while data[at] != 0xff if many else len(items) < n * (kind - 3):
        item, at = aws(data, at, depth + 1)
        items.append(item)
    check(kind == 4 or len(set(items[::2])) * 2 == len(items), "a key stands twice")
    return items if kind == 4 else dict(zip(items[::2], items[1::2])), at + many
def nitrotpm(doc, d, report, csp, o, tmp):
    doc = doc[doc[:1] == b"\xd2":]
    check(doc[:7].hex() == "8444a1013822a0" and len(doc) <= 16 << 10, "no COSE_Sign1 by ES384")
    payload, at = aws(doc, 7)
    signature, end = aws(doc, at)
    p, behind = aws(payload)
    check((end, behind, len(signature)) == (len(doc), len(payload), 96), "something behind it")
    module, pcrs, leaf, bundle = (p[name] for name in (b"module_id", b"nitrotpm_pcrs", b"certificate", b"cabundle"))
    name = re.fullmatch("(i-[0-9a-f]{8,17})-tpm[0-9a-f]{16}", module.decode())
    check(name and b"pcrs" not in p and p[b"digest"] == b"SHA384", "not of a node's NitroTPM")
    check(pcrs and all(i in range(32) and len(value) == 48 for i, value in pcrs.items()), "other registers")
    user_data = hashlib.sha512(b"sevagent/nitrotpm/v1\0" + struct.pack(">I", len(report)) + report).digest()
    free = [p.get(field) for field in (b"user_data", b"nonce", b"public_key")]
    check(free == [user_data, report[0x50:0x90], None], "for another report")
    tbs = inner(*inner(leaf, b"0"), b"00\3")[0]
    *_, subject, key, extensions = inner(tbs, b"\xa0\x0200000\xa3")
    names = dict(inner(*inner(rdn, b"0"), b"\6[\x0c\x13]") for rdn in inner(subject, b"1+"))
    region = re.fullmatch(re.escape(module) + rb"\.([a-z]+(-[a-z]+)+-[0-9]+)\.aws", names[b"\x55\4\3"])[1].decode()
    values = {e[0].hex(): e[-1] for e in (inner(x, b"\6\1?\4") for x in inner(*inner(extensions, b"0"), b"0+"))}
    check(key.startswith(P384) and values["551d0f"][3] & 128 and values.get("551d13", b"0\0") == b"0\0", "no signer")
    made, now = p[b"timestamp"] / 1000, o.at.timestamp()
    check(0 < made <= now + 300, "made later")
    for file, certs in {"leaf": [leaf], "above": bundle[1:]}.items():  # the first is never an anchor
        pathlib.Path(tmp, file).write_text("".join(map(ssl.DER_cert_to_PEM_cert, certs)))
    ok, why = openssl("verify", "-no-CApath", "-no-CAstore", "-attime", str(int(max(made, now))), "-CAfile", o.roots,
                      "-untrusted", tmp + "/above", tmp + "/leaf")
    check(ok, why)
    head = b"\x84\x6aSignature1\x44\xa1\x01\x38\x22\x40\x59" + struct.pack(">H", len(payload))
    check(*signed(tmp, tlv(0x30, key), ecdsa(signature[:48], signature[48:], "big"), head + payload))
    check(csp in (None, f"CN=cc-{region}.amazonaws.com"), "of another region than the report")
    claimed = d.get("instance", {"id": name[1], "region": region})
    check((claimed["id"], claimed["region"]) == (name[1], region), "of another instance or region than is claimed")

def verify(data, o):
    d = read(data)
    report, certs, tpm = form(d, o.nonce)
    kind, line = described(report)
    check(certs, "no certificate", "certificate")
    try: issuer, key, product, turin, tcb, identity = endorsement(certs[0], kind)
    except (LookupError, ValueError) as e: raise Refused("certificate", f"the first certificate is not AMD's: {e!r}")
    line = line or product
    check(not any(report[0x2D0:0x2E8] + report[0x318:0x330]), "R or S has more than 384 bits", "signature")
    signature = ecdsa(report[0x2A0:0x2D0], report[0x2E8:0x318], "little")
    with tempfile.TemporaryDirectory() as tmp:
        pathlib.Path(tmp, "cert").write_bytes(certs[0])
        check(*signed(tmp, key, signature, report[:0x2A0]), "signature")
        try: tpm and nitrotpm(tpm, d, report, identity if kind == "VLEK" else None, o, tmp)
        except Exception as e: raise Refused("nitrotpm", repr(e))
        # The roots alone: unless told otherwise, openssl trusts those of the system too. It takes a certificate's last
        # second for expired, which it is not (RFC 5280): what is valid the second before was not expired yet.
        at = o.at.timestamp()
        for second in math.floor(at), math.ceil(at) - 1:
            ok, why = openssl("verify", "-no-CApath", "-no-CAstore", "-attime", str(second), "-CAfile", o.roots,
                              tmp + "/cert")
            if "error 10 at" not in why: break
    above = ("SEV-VLEK-" if kind == "VLEK" else "SEV-") + line
    check(amd(above, issuer), "the issuer is not " + above, "chain")
    check(ok, why, "expired" if re.search("error (9|10) at", why) else "chain")
    check(tcb == report[0x180:0x188] and turin == (line == "Turin"), "the certificate is for another TCB", "mismatch")
    check(product == line or line == "Genoa" and product in ("Bergamo", "Siena"), "for a " + product, "mismatch")
    chip = report[0x1A0:0x1E0] if kind == "VCEK" and not report[0x48] & 2 else None
    check(not chip or identity.ljust(64, b"\0") == chip, "the certificate is for another chip", "mismatch")
    check(o.any_region or kind == "VLEK" and identity == f"CN=cc-{o.region}.amazonaws.com", "another region", "region")

def time(s):  # Python 3.9 has no Z, and fractions of six digits
    s = re.sub(r"(?<=\.)[0-9]+", lambda m: f"{m[0]:0<6.6}", s.replace("Z", "+00:00"))
    return datetime.datetime.fromisoformat(s)
p = argparse.ArgumentParser(usage=__doc__.split("\n\n")[1].strip(), allow_abbrev=False)
p.add_argument("document", type=pathlib.Path)
p.add_argument("--roots", required=True)
p.add_argument("--nonce", required=True, type=bytes.fromhex)
p.add_argument("--region")
p.add_argument("--any-region", action="store_true")
p.add_argument("--at", type=time, default=datetime.datetime.now(datetime.timezone.utc))
o = p.parse_args()
if not 16 <= len(o.nonce) <= 64: p.error("a nonce has 16 to 64 bytes")
if o.any_region != (o.region is None) or o.region == "": p.error("give the name of a region, or --any-region")
try: verify(o.document.read_bytes(), o)
except OSError: raise  # no document or no openssl: no answer
except Exception as e:  # whatever is wrong with a stranger's document, it is not accepted
    code, why = e.args if type(e) is Refused else ("malformed", repr(e))
    print("refused", code)
    print(ascii(why), file=sys.stderr)
    sys.exit(10)
print("accepted")
