"""Runs a verifier of sevagent's evidence over the vectors beside this file: README.md has the contract.

    run.py -- COMMAND...      for example: run.py -- python3 verify.py
    run.py --write DIR        writes the documents, with the arguments and the right answer of each in DIR/vectors.json
"""
import argparse, base64, concurrent.futures, json, os, pathlib, re, subprocess, sys, tempfile

KIT = pathlib.Path(__file__).resolve().parent
MEMBER = re.compile(r'("\w+"):(.*?),?\n')  # a line of a document in vectors/

def spell(value): return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

def certificates(members):
    text = json.loads(members['"certificates"'])
    return [base64.b64decode(block) for block in re.findall("-----BEGIN CERTIFICATE-----\n([^-]*)-----END", text)]

def pem(der):
    text = base64.b64encode(der).decode()
    lines = [text[i:i + 64] + "\n" for i in range(0, len(text), 64)]
    return "-----BEGIN CERTIFICATE-----\n" + "".join(lines) + "-----END CERTIFICATE-----\n"

def write(members, of, offset, hexadecimal):
    certs, new = certificates(members), bytes.fromhex(hexadecimal)
    data = bytearray(base64.b64decode(json.loads(members['"report"'])) if of == "report" else certs[0])
    data[offset:offset + len(new)] = new
    if of == "report": members['"report"'] = spell(base64.b64encode(data).decode())
    else: members['"certificates"'] = spell("".join(map(pem, [bytes(data), *certs[1:]])))

def wrap(members):
    def record(kind, data, indicator): return [kind, base64.urlsafe_b64encode(data).rstrip(b"=").decode(), indicator]
    cmw = {"__cmwc_t": "tag:sevagent,2026:evidence#2"}
    for i, cert in enumerate(certificates(members)): cmw[f"certificate-{i}"] = record("application/pkix-cert", cert, 2)
    report, tpm = (base64.b64decode(json.loads(members.get(name, '""'))) for name in ('"report"', '"nitrotpm"'))
    if tpm: cmw["nitrotpm"] = record("application/vnd.sevagent.nitrotpm-document", tpm, 4)
    members['"cmw"'] = spell(cmw | {"report": record("application/vnd.sevagent.sev-snp-report", report, 4)})

def document(vector):
    """Returns the document, or the certificate, that a vector describes."""
    if "certificate" in vector:
        return b"".join(PARTS[p[1:]] if p[0] == "@" else base64.b64decode(p) for p in vector["certificate"])
    members = dict(MEMBER.findall((KIT / "vectors" / (vector["document"] + ".json")).read_text()))
    for name in vector.get("drop", []): members.pop(f'"{name}"', None)
    members |= {f'"{name}"': spell(value) for name, value in vector.get("put", {}).items()}
    for change in vector.get("bytes", []): write(members, *change)
    if vector.get("wrap"): wrap(members)
    text = "{\n" + ",\n".join(name + ":" + value for name, value in members.items()) + "\n}\n"
    for old, new in vector.get("replace", []):
        if text.count(old) != 1: raise ValueError(f"{vector['name']}: {old!r} does not stand once in the document")
        text = text.replace(old, new)
    return text.encode()

def arguments(kit, vector):
    region = vector.get("region", kit["region"])
    return [*(["--any-region"] if region == "any" else ["--region", region]), "--nonce", vector["nonce"],
            "--at", vector.get("at", kit["at"]), "--roots", str(KIT / "vectors" / vector.get("roots", kit["roots"]))]

def verify(command, kit, vector, file):
    """Returns what is wrong with the verifier's answer, or nothing."""
    file.write_bytes(document(vector))
    run = subprocess.run([*command, *arguments(kit, vector), str(file)], capture_output=True, text=True, timeout=120)
    file.unlink()
    right = {"refused " + code: 10 for code in vector.get("refused", [])}
    if "refused" not in vector: right["accepted"] = 0
    answer = run.stdout.strip()
    if right.get(answer) == run.returncode and run.stdout.count("\n") == 1: return ""
    said = " ".join(run.stderr.split())[:200]
    name = f"{vector['class']}, {vector['name']}"
    return f"{name}: status {run.returncode}, {answer!r}, want {' or '.join(right)}; {said}"

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--write", type=pathlib.Path, metavar="DIR")
p.add_argument("--only", default="", metavar="TEXT", help="vectors that have TEXT in class or name")
p.add_argument("--jobs", type=int, default=os.cpu_count())
p.add_argument("command", nargs="*", metavar="COMMAND")
o = p.parse_args()
if bool(o.command) == bool(o.write): p.error("give a command behind --, or --write")
kit, more, last = (json.loads((KIT / (name + ".json")).read_text()) for name in ("vectors", "certificates", "nitrotpm"))
PARTS = {name: base64.b64decode(part) for name, part in more["parts"].items()}
kit["vectors"] += more["vectors"] + last["vectors"]
vectors = [v for v in kit["vectors"] if o.only in v["class"] + ", " + v["name"]]
if o.write:
    o.write.mkdir(parents=True)
    index = []
    for i, vector in enumerate(vectors):
        (o.write / f"{i:04}.json").write_bytes(document(vector))
        kept = {name: vector[name] for name in ("class", "name", "refused") if name in vector}
        index.append(kept | {"file": f"{i:04}.json", "arguments": arguments(kit, vector)})
    (o.write / "vectors.json").write_text(json.dumps(index, indent=1) + "\n")
    sys.exit()
with tempfile.TemporaryDirectory() as tmp, concurrent.futures.ThreadPoolExecutor(o.jobs) as pool:
    files = [pathlib.Path(tmp, f"{i}.json") for i in range(len(vectors))]
    wrong = [w for w in pool.map(lambda v, file: verify(o.command, kit, v, file), vectors, files) if w]
hostile = sum("refused" in v for v in vectors)
print(*wrong, f"{len(vectors)} vectors, {hostile} hostile: {len(wrong)} wrong answers", sep="\n")
sys.exit(bool(wrong) or not vectors)
