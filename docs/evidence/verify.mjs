// Verifies sevagent's evidence with nothing but Node's own modules: see README.md and docs/evidence.md.
//
//     verify.mjs --roots ROOTS.pem --nonce HEX (--region REGION | --any-region) [--at TIME] DOCUMENT
import { createHash, createPublicKey, verify as verifySignature, X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";

const PROFILE = "tag:sevagent,2026:evidence#2";
const MEMBERS = ["eat_profile", "eat_nonce", "iat", "purpose", "binding", "caller", "batch", "report_data", "report",
  "certificates", "cmw"];

class Refused extends Error {
  constructor(code, why) {
    super(why);
    this.code = code;
  }
}

function check(ok, why, code = "malformed") {
  if (!ok) throw new Refused(code, why);
}

// JSON that has one reading. JSON.parse takes names that stand twice, and several spellings of one number.
class Reader {
  constructor(text) {
    this.text = text;
    this.at = 0;
  }

  // take returns what matches at this place, or null.
  take(pattern) {
    pattern.lastIndex = this.at;
    const found = pattern.exec(this.text);
    if (found) this.at = pattern.lastIndex;
    return found && found[0];
  }

  blanks() {
    this.take(/[ \t\r\n]*/y);
  }

  token(letter) {
    this.blanks();
    if (this.text[this.at] !== letter) return false;
    this.at++;
    return true;
  }

  value(depth) {
    this.blanks();
    switch (this.text[this.at]) {
      case "{": return this.object(depth);
      case "[": return this.array(depth);
      case '"': return this.string();
    }
    const word = this.take(/true|false/y);
    if (word) return word === "true";
    const number = this.take(/-?(?:0|[1-9][0-9]*)(?![0-9.eE])/y);
    check(number !== null && number !== "-0" && Number.isSafeInteger(Number(number)), `no value at ${this.at}`);
    return Number(number);
  }

  string() {
    // What JSON.parse takes as a string is one; half a surrogate pair is not.
    const spelled = this.take(/"(?:[^"\\\u0000-\u001f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"/y);
    check(spelled, `no string at ${this.at}`);
    const value = JSON.parse(spelled);
    check(value.isWellFormed(), "half a surrogate pair");
    return value;
  }

  object(depth) {
    check(depth <= 16, "nested more than 16 deep");
    const members = new Map();
    this.token("{");
    if (this.token("}")) return members;
    do {
      this.blanks();
      const name = this.string();
      check(!members.has(name), `the name ${JSON.stringify(name)} stands twice`);
      check(this.token(":"), "no colon");
      members.set(name, this.value(depth + 1));
    } while (this.token(","));
    check(this.token("}"), "an object without an end");
    return members;
  }

  array(depth) {
    check(depth <= 16, "nested more than 16 deep");
    const items = [];
    this.token("[");
    if (this.token("]")) return items;
    do items.push(this.value(depth + 1)); while (this.token(","));
    check(this.token("]"), "an array without an end");
    return items;
  }
}

function read(data) {
  if (data[0] === 0x30) return carried(data); // a SEQUENCE
  check(data.length <= 256 << 10, "more than 256 KiB");
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(data);
  } catch {
    throw new Refused("malformed", "not UTF-8");
  }
  const reader = new Reader(text);
  const value = reader.value(1);
  reader.blanks();
  check(reader.at === text.length, "something behind the document");
  return value;
}

// The form of a document: exactly these members, each in its one spelling.
function members(object, required, optional = []) {
  check(object instanceof Map, "not an object");
  check(required.every((name) => object.has(name)), `missing one of ${required}`);
  check([...object.keys()].every((name) => required.includes(name) || optional.includes(name)), "an unknown member");
  return object;
}

function text(value, pattern, longest = Infinity) {
  check(typeof value === "string" && value.length <= longest, "not a text, or too long");
  check(new RegExp(`^(?:${pattern})$`).test(value), `not of the form ${pattern}`);
  return value;
}

function whole(value, below) {
  check(typeof value === "number" && value >= 0 && value < below, `not a number from 0 to ${below}`);
  return value;
}

function hex(value, size) {
  return Buffer.from(text(value, `[0-9a-f]{${2 * size}}`), "hex");
}

function base64(value, encoding) {
  check(typeof value === "string", "not a text");
  const data = Buffer.from(value, encoding);
  check(data.toString(encoding) === value, `not canonical ${encoding}`);
  return data;
}

// leaf hashes the claims of a document, whose forms it checks.
function leaf(d) {
  const binding = members(d.get("binding"), ["kind"], ["spki_sha256"]);
  const bound = text(binding.get("kind"), "none|client|server") !== "none";
  check(bound === binding.has("spki_sha256"), "spki_sha256 does not go with the kind of binding");
  const caller = d.get("caller");
  switch (members(caller, ["kind"], ["uid", "container_id", "task_arn"]).get("kind")) {
    case "host":
      members(caller, ["kind", "uid"]);
      break;
    case "container":
      text(members(caller, ["kind", "uid", "container_id"], ["task_arn"]).get("container_id"), "[0-9a-f]{64}");
      if (caller.has("task_arn")) {
        text(caller.get("task_arn"), "arn:aws(-[a-z]+)*:ecs:[a-z0-9-]+:[0-9]+:task/([A-Za-z0-9_-]+/)?[0-9a-f-]+", 400);
      }
      break;
    default:
      check(members(caller, ["kind"]).get("kind") === "unknown", "unknown kind of caller");
  }
  const instance = d.get("instance") ?? new Map();
  if (d.has("instance")) {
    members(instance, ["id", "region", "account_id"]);
    text(instance.get("id"), "i-[0-9a-f]{8,17}");
    text(instance.get("region"), "[a-z]+(-[a-z]+)+-[0-9]+", 32);
    text(instance.get("account_id"), "[0-9]{12}");
  }
  return sha512("leaf", ...[
    text(d.get("purpose"), "boot|mtls|client"), nonceOf(d),
    binding.get("kind"), bound ? hex(binding.get("spki_sha256"), 32) : "",
    caller.get("kind"), caller.has("uid") ? String(whole(caller.get("uid"), 2 ** 32)) : "",
    caller.get("container_id") ?? "", caller.get("task_arn") ?? "",
    instance.get("id") ?? "", instance.get("region") ?? "", instance.get("account_id") ?? "",
  ].flatMap((part) => {
    const length = Buffer.alloc(4);
    length.writeUInt32BE(part.length); // all texts are ASCII
    return [length, Buffer.from(part)];
  }));
}

function sha512(label, ...parts) {
  const hash = createHash("sha512").update(`sevagent/evidence/v2/${label}\0`);
  for (const part of parts) hash.update(part);
  return hash.digest();
}

function nonceOf(d) {
  const nonce = base64(d.get("eat_nonce"), "base64url");
  check(nonce.length >= 16 && nonce.length <= 64, "a nonce of another size");
  return nonce;
}

function root(h, batch) {
  const path = members(batch, ["index", "path"]).get("path");
  check(Array.isArray(path) && path.length <= 16, "not a path of at most 16 steps");
  const index = whole(batch.get("index"), 2 ** path.length);
  path.map((step) => hex(step, 64)).forEach((step, i) => {
    h = index >> i & 1 ? sha512("node", step, h) : sha512("node", h, step);
  });
  return h;
}

function armour(der) {
  const lines = der.toString("base64").match(/.{1,64}/g) ?? [];
  return ["-----BEGIN CERTIFICATE-----", ...lines, "-----END CERTIFICATE-----", ""].join("\n");
}

// sameCMW reports whether a value that was read is the collection of these records, each an array of three. It may
// leave out the certificates behind the first.
function sameCMW(value, records) {
  if (!(value instanceof Map) || value.get("__cmwc_t") !== PROFILE) return false;
  const same = ([label, found]) => label === "__cmwc_t" || records.has(label) && Array.isArray(found) &&
    found.length === 3 && found.every((part, i) => part === records.get(label)[i]);
  const present = (label) => value.has(label) || !records.has(label);
  return [...value].every(same) && ["report", "certificate-0", "nitrotpm"].every(present);
}

// form returns report, certificates and NitroTPM's document of a document that has one reading.
function form(d, nonce) {
  const profile = d instanceof Map ? d.get("eat_profile") : undefined;
  check(typeof profile !== "string" || profile === PROFILE, `eat_profile is not ${PROFILE}`, "profile");
  check(profile === PROFILE, "no eat_profile");
  members(d, MEMBERS, ["instance", "nitrotpm", "verdict"]);
  check(typeof d.get("iat") === "number", "iat is not a number");
  check(!d.has("verdict") || d.get("verdict") instanceof Map, "verdict is not an object");
  const report = base64(d.get("report"), "base64");
  check(report.length === 1184, "a report of another size");
  const pem = d.get("certificates");
  check(typeof pem === "string", "certificates is not a text");
  const blocks = [...pem.matchAll(/-----BEGIN CERTIFICATE-----\n([^-]*)-----END/g)];
  const certs = blocks.map((block) => Buffer.from(block[1], "base64"));
  check(certs.map(armour).join("") === pem && certs.length <= 8, "not up to 8 PEM certificates");
  const records = certs.map((der, i) => [`certificate-${i}`, ["application/pkix-cert", der.toString("base64url"), 2]]);
  records.push(["report", ["application/vnd.sevagent.sev-snp-report", report.toString("base64url"), 4]]);
  const tpm = d.has("nitrotpm") ? base64(d.get("nitrotpm"), "base64") : null;
  check(tpm?.length !== 0, "nitrotpm is empty");
  if (tpm) records.push(["nitrotpm", ["application/vnd.sevagent.nitrotpm-document", tpm.toString("base64url"), 4]]);
  check(sameCMW(d.get("cmw"), new Map(records)), "cmw is not the collection of report and certificates");
  const reportData = report.subarray(0x50, 0x90);
  check(hex(d.get("report_data"), 64).equals(reportData), "report_data is not the report's REPORT_DATA");
  check(root(leaf(d), d.get("batch")).equals(reportData), "REPORT_DATA is not for these claims", "report_data");
  check(nonceOf(d).equals(nonce), "eat_nonce is another nonce", "nonce");
  return { report, certs, tpm };
}

// described returns the kind of the key and the product line of a report of a known form.
function described(report) {
  const word = (at) => report.readUInt32LE(at);
  const version = word(0);
  check(version >= 2 && version <= 5 && word(0x34) === 1, "unknown version or algorithm", "report");
  const zero = [[0x4c, 0x50], [0x18b, 0x1a0], [0x1eb, 0x1ec], [0x1ef, 0x1f0], [0x208, 0x2a0], [0x330, 0x4a0]];
  if (version < 5) zero.push([0x1f8, 0x208]);
  if (version < 3) zero.push([0x188, 0x18b]);
  check(zero.every(([from, to]) => report.subarray(from, to).every((b) => b === 0)), "reserved bytes", "report");
  const policy = report.readBigUInt64LE(8);
  check(policy >> 26n === 0n && policy >> 17n & 1n, "reserved bits of POLICY", "report");
  check(word(0x48) < 8 && report[0x18a] < 16, "reserved bits of the flags or of the stepping", "report");
  const [family, model] = report.subarray(0x188, 0x18a);
  let line = null;
  if (family === 0x19 && model < 0x10) line = "Milan";
  else if (family === 0x19 && (model < 0x20 || model >= 0xa0 && model < 0xb0)) line = "Genoa";
  else if (family === 0x1a && model < 0x12) line = "Turin";
  check(line || version === 2, "unknown processor", "product");
  return { kind: report[0x48] & 4 ? "VLEK" : "VCEK", line: version === 2 ? null : line };
}

// tlv returns the tags and values of the DER that stands one after another.
function tlv(data) {
  const items = [];
  while (data.length > 0) {
    check(data.length > 1, "not DER", "certificate");
    const long = data[1] > 127 ? data[1] - 128 : 0;
    check(long < 4 && data.length >= 2 + long, "not DER", "certificate");
    const size = long > 0 ? data.readUIntBE(2, long) : data[1];
    const end = 2 + long + size;
    check(data.length >= end, "not DER", "certificate");
    items.push({ tag: data[0], value: data.subarray(2 + long, end) });
    data = data.subarray(end);
  }
  return items;
}

// parts returns the values, whose tags are as the pattern of hexadecimal digits says: 30 is a SEQUENCE, 31 a SET.
function parts(data, tags) {
  const items = tlv(data);
  const found = Buffer.from(items.map((item) => item.tag)).toString("hex");
  check(new RegExp(`^(?:${tags})$`).test(found), `other parts than AMD's: ${found}`, "certificate");
  return items.map((item) => item.value);
}

// isAMD reports whether a name is AMD's, with this common name.
function isAMD(name, common) {
  const want = ["06 US", "07 Santa Clara", "08 CA", "0a Advanced Micro Devices", "0b Engineering", "03 " + common];
  const found = parts(name, "(31){6}").map((rdn) => {
    const [oid, value] = parts(parts(rdn, "30")[0], "06(0c|13)");
    return `${oid.toString("hex").replace(/^5504/, "")} ${value}`;
  });
  return found.sort().join() === want.sort().join();
}

function small(value, most = 127) {
  const [item] = tlv(value);
  check(item && item.tag === 2 && value.length === 2 + item.value.length, "not an INTEGER", "certificate");
  const { value: b } = item;
  check(b.length === 1 && b[0] < 128 || b.length === 2 && b[0] === 0 && b[1] >= 128, "no small INTEGER", "certificate");
  const n = b[b.length - 1];
  check(n <= most, "a number that is too large", "certificate");
  return n;
}

function ia5(value) {
  const [item] = tlv(value);
  check(item && item.tag === 0x16 && item.value.length > 0 && value.length === 2 + item.value.length &&
    item.value.every((b) => b < 128), "not an IA5String", "certificate");
  return item.value.toString("latin1");
}

// RSASSA-PSS with SHA-384. AMD's older certificates spell the trailer field out.
const PSS_SHA384 = new RegExp("^06092a864886f70d01010a30(34|39)a00f300d06096086480165030402020500" +
  "a11c301a06092a864886f70d010108300d06096086480165030402020500a203020130(a303020101)?$");
const P384 = "301006072a8648ce3d020106052b81040022036200";

// endorsement reads an endorsement key's certificate, which looks like AMD's in everything but numbers and texts.
function endorsement(der, kind) {
  const [tbs, algorithm] = parts(parts(der, "30")[0], "303003");
  const [version, serial, inner, issuer, , subject, key, extensions] = parts(tbs, "a0023030303030a3");
  check(version.toString("hex") === "020102" && serial[0] < 128, "not a certificate of version 3", "certificate");
  check(PSS_SHA384.test(inner.toString("hex")) && algorithm.equals(inner), "not signed as AMD signs", "certificate");
  check(isAMD(subject, "SEV-" + kind), `not the certificate of a ${kind}`, "certificate");
  check(key.length === 118 && key.toString("hex").startsWith(P384), "no key on P-384", "certificate");
  const values = new Map();
  for (const entry of parts(parts(extensions, "30")[0], "(30)+")) {
    const [oid, value] = parts(entry, "0604"); // a critical extension has three parts
    check(!values.has(oid.toString("hex")), "an extension stands twice", "certificate");
    values.set(oid.toString("hex"), value);
  }
  values.delete("551d23"); // AuthorityKeyIdentifier
  const take = (arc) => {
    const id = "2b060104019c7801" + arc;
    check(values.has(id), `no extension ${arc}`, "certificate");
    const value = values.get(id);
    values.delete(id);
    return value;
  };
  const turin = values.has("2b060104019c78010309");
  const arcs = turin ? "09 01 02 03 05 06 07 08" : "01 02 04 05 06 07 03 08"; // the bytes of the TCB, the lowest first
  const tcb = Buffer.from(arcs.split(" ").map((arc) => small(take("03" + arc), arc === "08" ? 255 : 127)));
  small(take("01"), 255);
  const [product] = ia5(take("02")).split("-");
  const identity = kind === "VLEK" ? ia5(take("05")) : take("04");
  check(values.size === 0, "an extension that AMD's do not have", "certificate");
  check(kind === "VLEK" || identity.length === (turin ? 8 : 64), "a hardware ID of another size", "certificate");
  return { issuer, product, turin, tcb, identity };
}

// cbor reads one item in its shortest form, with nothing behind it.
function cbor(data) {
  let at = 0;
  const item = (depth) => {
    const first = data[at++] ?? 0xff;
    const kind = first >> 5;
    let n = first & 31;
    if (n > 23) {
      check(n < 28, "an indefinite length");
      const size = 1 << n - 24;
      check(size <= data.length - at, "CBOR that is cut off");
      n = data.subarray(at, at += size).reduce((sum, b) => sum * 256 + b, 0);
      check(size === 1 ? n > 23 : n >= 2 ** (4 * size), "a number that is longer than it has to be");
    }
    if (kind === 0) return n;
    check([2, 3, 4].includes(kind) && n <= data.length - at && depth < 3, "other CBOR than ours, or cut off");
    if (kind === 4) return Array.from({ length: n }, () => item(depth + 1));
    const value = data.subarray(at, at += n);
    return kind === 2 ? value : new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(value);
  };
  const value = item(0);
  check(at === data.length, "something behind the CBOR");
  return value;
}

function list(value, size) {
  check(Array.isArray(value) && (size === undefined || value.length === size), `not a list of ${size}`);
  return value;
}

function octets(value) {
  check(Buffer.isBuffer(value), "not octets");
  return value;
}

// encoded is DER of a tag and a value.
function encoded(tag, value) {
  if (value.length < 128) return Buffer.concat([Buffer.from([tag, value.length]), value]);
  const digits = value.length.toString(16);
  const size = Buffer.from(digits.length % 2 ? "0" + digits : digits, "hex");
  return Buffer.concat([Buffer.from([tag, 128 + size.length]), size, value]);
}

const EVIDENCE = "application/vnd.sevagent.evidence.v2+cbor";

// carried returns the evidence that a certificate carries, as the document that says the same.
function carried(data) {
  const fields = tlv(parts(parts(data, "30")[0], "303003")[0]);
  const extensions = fields.at(-1);
  check(fields.length > 7 && extensions.tag === 0xa3, "a certificate without extensions");
  const cmw = parts(parts(extensions.value, "30")[0], "(30)+").map(tlv)
    .filter((entry) => entry[0].value.toString("hex") === "2b06010505070123"); // id-pe-cmw
  check(cmw.length === 1 && cmw[0].length === 2, "no id-pe-cmw, or twice, or critical");
  const { value } = cmw[0][1];
  check(value[0] === 4, "not the CBOR of id-pe-cmw", "profile");
  const [content] = parts(value, "04");
  check(value.length <= 3072 && encoded(4, content).equals(value), "a value that is too long, or not DER");
  const [media, inner, indicator] = list(cbor(content), 3);
  check(media === EVIDENCE, `not of the media type ${EVIDENCE}`, "profile");
  check(indicator === 6, "not the indicator of evidence and endorsements");
  const [nonce, iat, kind, hash, uid, node, index, path, report, cert] = list(cbor(octets(inner)), 10);
  check(Number.isSafeInteger(iat), "iat is not a number of 53 bits");
  check(kind === "client" || kind === "server", "no binding");
  const key = fields.findLast(({ tag }) => tag === 0x30);
  check(createHash("sha256").update(encoded(0x30, key.value)).digest().equals(octets(hash)),
    "evidence of another key than the certificate's", "binding");
  const map = (object) => new Map(Object.entries(object));
  const document = map({
    eat_profile: PROFILE, eat_nonce: octets(nonce).toString("base64url"), iat, purpose: "mtls",
    binding: map({ kind, spki_sha256: hash.toString("hex") }), caller: map({ kind: "host", uid }),
    batch: map({ index, path: list(path).map((step) => octets(step).toString("hex")) }),
    report_data: octets(report).toString("hex", 0x50, 0x90), report: report.toString("base64"),
    certificates: armour(octets(cert)),
    cmw: map({
      __cmwc_t: PROFILE, report: ["application/vnd.sevagent.sev-snp-report", report.toString("base64url"), 4],
      "certificate-0": ["application/pkix-cert", cert.toString("base64url"), 2],
    }),
  });
  if (list(node).length > 0) {
    const [id, region, account_id] = list(node, 3);
    document.set("instance", map({ id, region, account_id }));
  }
  return document;
}

// intermediateOf names the certificate above an endorsement key's: AMD's ASVK or ASK.
function intermediateOf(kind, line) {
  return (kind === "VLEK" ? "SEV-VLEK-" : "SEV-") + line;
}

// chain checks that the certificate leads to a root of this product line, all being valid at the time.
function chain(cert, roots, kind, line, at) {
  const named = (name) => roots.filter((c) => c.subject.split("\n").includes("CN=" + name));
  const issued = (c, name) => named(name).find((issuer) => c.checkIssued(issuer) && c.verify(issuer.publicKey));
  const intermediate = issued(cert, intermediateOf(kind, line));
  check(intermediate, `not issued by ${intermediateOf(kind, line)} of the roots`, "chain");
  const ark = issued(intermediate, "ARK-" + line);
  check(ark && ark.checkIssued(ark) && ark.verify(ark.publicKey), `not issued by AMD's ARK for ${line}`, "chain");
  for (const c of [cert, intermediate, ark]) {
    check(Date.parse(c.validFrom) <= at && at <= Date.parse(c.validTo), `${c.subject} is not valid`, "expired");
  }
}

// aws reads an item of CBOR as AWS writes it, and returns it with the place of the next one. Maps and arrays may have
// no length, and null stands for what is not there.
function aws(data, at = 0, depth = 0) {
  check(at < data.length && depth < 6, "CBOR that is cut off, or nested too deep");
  const kind = data[at] >> 5;
  let n = data[at++] & 31;
  const many = n === 31 && (kind === 4 || kind === 5);
  if (n > 23 && !many) {
    check(n < 28, "no length");
    n = data.subarray(at, at += 1 << n - 24).reduce((sum, b) => sum * 256 + b, 0);
  }
  check(kind !== 6 && at + (kind === 2 || kind === 3 ? n : 0) <= data.length, "a tag, or CBOR that is cut off");
  if (kind < 2) return [kind ? -1 - n : n, at];
  if (kind < 4) return [kind === 2 ? data.subarray(at, at + n) : data.toString("latin1", at, at + n), at + n];
  if (kind === 7) return [n === 22 ? null : { simple: n }, at];
  const items = [];
  while (many ? data[at] !== 0xff : items.length < n * (kind - 3)) {
    const [item, next] = aws(data, at, depth + 1);
    items.push(item);
    at = next;
  }
  if (kind === 4) return [items, at + many];
  const found = new Map(items.flatMap((key, i) => i % 2 ? [] : [[key, items[i + 1]]]));
  check(found.size * 2 === items.length, "a key stands twice");
  return [found, at + many];
}

// nitrotpm verifies the document of a NitroTPM for a report; csp is the CSP_ID of the report's VLEK.
function nitrotpm(doc, d, report, csp, roots, now) {
  const start = doc[0] === 0xd2 ? 1 : 0;
  check(doc.length <= 16 << 10 && doc.toString("hex", start, start + 7) === "8444a1013822a0", "no COSE_Sign1 by ES384");
  const [payload, behind] = aws(doc, start + 7);
  const [signature, end] = aws(doc, behind);
  const [p, last] = aws(payload);
  check(end === doc.length && last === payload.length && signature.length === 96, "something behind it");
  const [module, pcrs, made] = ["module_id", "nitrotpm_pcrs", "timestamp"].map((name) => p.get(name));
  const instance = /^(i-[0-9a-f]{8,17})-tpm[0-9a-f]{16}$/.exec(module)[1];
  check(!p.has("pcrs") && p.get("digest") === "SHA384" && pcrs.size > 0, "not of a node's NitroTPM");
  check([...pcrs].every(([i, value]) => i >= 0 && i < 32 && octets(value).length === 48), "other registers");
  const size = Buffer.from([0, 0, report.length >> 8, report.length & 255]);
  const hash = createHash("sha512").update("sevagent/nitrotpm/v1\0").update(size).update(report).digest();
  check(hash.equals(p.get("user_data")) && report.subarray(0x50, 0x90).equals(p.get("nonce")) &&
    (p.get("public_key") ?? null) === null, "for another report");
  check(made > 0 && made <= now + 300_000, "made later");
  const time = Math.max(now, made);
  const above = p.get("cabundle").slice(1).map((der) => new X509Certificate(der)); // the first is never an anchor
  const leaf = new X509Certificate(p.get("certificate"));
  const path = [leaf];
  for (let root = false; !root;) {
    const issued = (issuer) => path.at(-1).checkIssued(issuer) && path.at(-1).verify(issuer.publicKey);
    root = roots.find(issued);
    const next = root ?? above.find((c) => c.ca && !path.includes(c) && issued(c));
    check(next, "the certificates do not lead to a root");
    path.push(next);
  }
  const extension = (c, oid) => parts(tlv(tlv(tlv(c.raw)[0].value)[0].value).at(-1).value, "30").flatMap(tlv)
    .map((entry) => tlv(entry.value)).find((entry) => entry[0].value.toString("hex") === oid)?.at(-1).value;
  path.forEach((c, i) => { // i - 1 certificates of CAs are below that of a CA
    const limit = /^30060101ff0201(..)$/.exec(extension(c, "551d13")?.toString("hex"));
    check(!limit || i - 1 <= parseInt(limit[1], 16), "a path that is too long");
    check(Date.parse(c.validFrom) <= time && time <= Date.parse(c.validTo), `${c.subject} is not valid`);
  });
  const key = leaf.publicKey;
  check(key.asymmetricKeyDetails?.namedCurve === "secp384r1" && !leaf.ca && extension(leaf, "551d0f")[3] & 128,
    "no certificate of a signer");
  const head = Buffer.from("846a5369676e61747572653144a10138224059", "hex"); // Sig_structure: RFC 9052, section 4.4
  const signed = Buffer.concat([head, Buffer.from([payload.length >> 8, payload.length & 255]), payload]);
  check(verifySignature("sha384", signed, { key, dsaEncoding: "ieee-p1363" }, signature), "another key's signature");
  const name = leaf.subject.split("\n").find((line) => line.startsWith(`CN=${module}.`)) ?? "";
  const region = /^([a-z]+(?:-[a-z]+)+-[0-9]+)\.aws$/.exec(name.slice(module.length + 4))[1];
  const claimed = d.get("instance");
  check(csp === null || csp === `CN=cc-${region}.amazonaws.com`, "of another region than the report");
  check(!claimed || claimed.get("id") === instance && claimed.get("region") === region, "of another than is claimed");
}

function verify(data, { roots, nonce, region, at }) {
  const d = read(data);
  const { report, certs, tpm } = form(d, nonce);
  const { kind, line: named } = described(report);
  check(certs.length > 0, "no certificate", "certificate");
  const { issuer, product, turin, tcb, identity } = endorsement(certs[0], kind);
  const line = named ?? product;
  let cert, key;
  try {
    cert = new X509Certificate(certs[0]);
    key = createPublicKey(cert.publicKey.export({ type: "spki", format: "pem" }));
  } catch (e) {
    throw new Refused("certificate", String(e));
  }
  const fields = [0x2a0, 0x2e8].map((from) => Buffer.from(report.subarray(from, from + 72)).reverse());
  check(fields.every((field) => field.subarray(0, 24).every((b) => b === 0)),
    "R or S has more than 384 bits", "signature");
  const signature = Buffer.concat(fields.map((field) => field.subarray(24)));
  check(verifySignature("sha384", report.subarray(0, 0x2a0), { key, dsaEncoding: "ieee-p1363" }, signature),
    "not signed by the certificate's key", "signature");
  check(isAMD(issuer, intermediateOf(kind, line)), `the issuer is not AMD's for ${line}`, "chain");
  chain(cert, roots, kind, line, at);
  try {
    if (tpm) nitrotpm(tpm, d, report, kind === "VLEK" ? identity : null, roots, at);
  } catch (e) {
    throw new Refused("nitrotpm", `the NitroTPM's document: ${e.message}`);
  }
  const reported = report.subarray(0x180, 0x188);
  check(tcb.equals(reported) && turin === (line === "Turin"), "the certificate is for another TCB", "mismatch");
  const same = product === line || line === "Genoa" && (product === "Bergamo" || product === "Siena");
  check(same, `the certificate is for a ${product}`, "mismatch");
  if (kind === "VCEK" && !(report[0x48] & 2)) { // unless MASK_CHIP_KEY hides it
    const chip = Buffer.concat([identity, Buffer.alloc(64 - identity.length)]);
    check(chip.equals(report.subarray(0x1a0, 0x1e0)), "the certificate is for another chip", "mismatch");
  }
  const csp = `CN=cc-${region}.amazonaws.com`;
  check(region === null || kind === "VLEK" && identity === csp, "another region", "region");
}

function options() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      roots: { type: "string" }, nonce: { type: "string" },
      region: { type: "string" }, "any-region": { type: "boolean" },
      at: { type: "string", default: new Date().toISOString() },
    },
  });
  const { roots, nonce, region, at } = values;
  const time = Date.parse(at);
  if (positionals.length !== 1 || !roots || !/^(?:[0-9a-f]{2}){16,64}$/.test(nonce ?? "") || Number.isNaN(time) ||
    !region === !values["any-region"]) {
    throw new Error("usage: verify.mjs --roots ROOTS.pem --nonce HEX (--region REGION | --any-region) " +
      "[--at TIME] DOCUMENT");
  }
  const pem = readFileSync(roots, "latin1").match(/-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----/g) ?? [];
  return {
    document: readFileSync(positionals[0]), roots: pem.map((text) => new X509Certificate(text)),
    nonce: Buffer.from(nonce, "hex"), region: region ?? null, at: time,
  };
}

let given;
try {
  given = options();
} catch (e) {
  console.error(e.message);
  process.exit(2);
}
try {
  verify(given.document, given);
  console.log("accepted");
} catch (e) { // whatever is wrong with a stranger's document, it is not accepted
  console.log("refused", e instanceof Refused ? e.code : "malformed");
  console.error(JSON.stringify(e instanceof Refused ? e.message : String(e.stack)));
  process.exitCode = 10;
}
