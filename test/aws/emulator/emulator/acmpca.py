"""AWS Private CA: what it issues, what it refuses, and that a certificate is not there at once.

User guide, "template definitions" and "order of operations"; API reference, IssueCertificate and GetCertificate.
"""

import base64
import calendar
import datetime
import json
import re
import threading
import time
import uuid

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID
from moto.acmpca.responses import ACMPCAResponse
from moto.utilities.utils import get_partition

from .api import AWSError, extend, operation

KEYS = {
    "RSA_2048": lambda: rsa.generate_private_key(65537, 2048),
    "RSA_3072": lambda: rsa.generate_private_key(65537, 3072),
    "RSA_4096": lambda: rsa.generate_private_key(65537, 4096),
    "EC_prime256v1": lambda: ec.generate_private_key(ec.SECP256R1()),
    "EC_secp384r1": lambda: ec.generate_private_key(ec.SECP384R1()),
    "EC_secp521r1": lambda: ec.generate_private_key(ec.SECP521R1()),
}
END_ENTITIES = {
    "EndEntityCertificate": [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH],
    "EndEntityClientAuthCertificate": [ExtendedKeyUsageOID.CLIENT_AUTH],
    "EndEntityServerAuthCertificate": [ExtendedKeyUsageOID.SERVER_AUTH],
}
TOKEN_LIFE = datetime.timedelta(minutes=5)
BACKDATED = datetime.timedelta(minutes=60)
SHORT_LIVED = datetime.timedelta(days=7)


class State:
    def __init__(self):
        self.pending = 1  # how often GetCertificate says that a certificate is not issued yet; below zero: always
        self.rate = None  # of IssueCertificate, each second; None: no quota
        self.room, self.filled = 1.0, time.monotonic()  # of the quota
        self.asked = {}  # certificate ARN: how often
        self.tokens = {}  # (CA ARN, token): (when, certificate ARN)


_state, _lock = State(), threading.Lock()


def reset():
    _state.__init__()


def settings(pending=None, rate=None):
    """The control API's private-ca."""
    if pending is not None:
        _state.pending = int(pending)
    _state.rate, _state.room, _state.filled = rate, max(1.0, rate or 0), time.monotonic()


def now():
    return datetime.datetime.now(datetime.timezone.utc)


@extend(ACMPCAResponse)
def create_certificate_authority(original, self):
    """A CA has the key and the mode that are asked for."""
    p = json.loads(self.body)
    algorithm, mode = p["CertificateAuthorityConfiguration"]["KeyAlgorithm"], p.get("UsageMode", "GENERAL_PURPOSE")
    if algorithm not in KEYS:
        raise AWSError("InvalidArgsException", f"not emulated: {algorithm}")
    answer = original(self)
    ca = self.acmpca_backend.certificate_authorities[json.loads(answer)["CertificateAuthorityArn"]]
    ca.usage_mode = mode
    ca.private_bytes = KEYS[algorithm]().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(ca.password))
    return answer


@operation(ACMPCAResponse, json_body=True)
def issue_certificate(self, p):
    _throttle()
    ca = self.acmpca_backend.describe_certificate_authority(p["CertificateAuthorityArn"])
    token = p.get("IdempotencyToken", "")
    for name, value, limit in [("csr", base64.b64decode(p["Csr"]), 32768), ("idempotencyToken", token, 36)]:
        if len(value) > limit:
            raise _invalid(name, f"Member must have length less than or equal to {limit}")
    key = (ca.arn, token)
    with _lock:
        if token and key in _state.tokens and now() - _state.tokens[key][0] < TOKEN_LIFE:
            # As documented: the token alone says that one certificate is wanted.
            return {"CertificateArn": _state.tokens[key][1]}
        certificate, chain = _issue(self.region, ca, p)
        arn = f"{ca.arn}/certificate/{uuid.uuid4().hex}"
        ca.issued_certificates[arn] = certificate
        ca.issued_certificates_certificate_chains[arn] = chain
        _state.tokens[key] = (now(), arn)
    return {"CertificateArn": arn}


@operation(ACMPCAResponse, json_body=True)
def get_certificate(self, p):
    """Returns certificates that are issued, expired or revoked."""
    ca, arn = self.acmpca_backend.describe_certificate_authority(p["CertificateAuthorityArn"]), p["CertificateArn"]
    if not re.fullmatch(r"arn:[\w-]+:acm-pca:[\w-]*:\d*:certificate-authority/[\w-]+/certificate/\w+", arn):
        raise AWSError("InvalidArnException", f"The ARN {arn} is not that of a certificate.")
    if arn not in ca.issued_certificates:
        raise AWSError("ResourceNotFoundException", f"Could not find certificate {arn}.")
    asked = _state.asked[arn] = _state.asked.get(arn, 0) + 1
    if _state.pending < 0 or asked <= _state.pending:
        raise AWSError("RequestInProgressException", f"The certificate {arn} is being issued.")
    found = {"Certificate": ca.issued_certificates[arn].decode().strip(),
             "CertificateChain": ca.issued_certificates_certificate_chains[arn]}
    return {name: text for name, text in found.items() if text}


def _invalid(name, constraint):
    return AWSError("ValidationException", f"1 validation error detected: Value at '{name}' failed to satisfy "
                                           f"constraint: {constraint}")


def _throttle():
    if _state.rate is None:
        return
    with _lock:
        at = time.monotonic()
        _state.room = min(max(1.0, _state.rate), _state.room + (at - _state.filled) * _state.rate)
        _state.filled = at
        if _state.room < 1:
            raise AWSError("ThrottlingException", "Rate exceeded")
        _state.room -= 1


def _issue(region, ca, p):
    """The certificate and its chain, as PEM."""
    prefix = f"arn:{get_partition(region)}:acm-pca:::template/"
    arn = p.get("TemplateArn", prefix + "EndEntityCertificate/V1")
    match = re.fullmatch(re.escape(prefix) + r"(\w+?)(?:_PathLen([0-3]))?(?:_(API|CSR|APICSR)Passthrough)?/V1", arn)
    kind, length, variety = match.groups() if match else (None, None, None)
    root, below = kind == "RootCACertificate", kind == "SubordinateCACertificate"
    if not (root or below or kind in END_ENTITIES) or below != bool(length) or (variety and kind not in END_ENTITIES):
        raise AWSError("InvalidArgsException", f"The template {arn} does not exist, or is not emulated.")
    status = "EXPIRED" if ca.certificate and ca.certificate.not_valid_after_utc <= now() else ca.status
    if status != ("PENDING_CERTIFICATE" if root else "ACTIVE"):  # a root signs its own before it is active
        raise AWSError("InvalidStateException", f"The certificate authority {ca.arn} is not in the correct state to "
                                                f"issue certificates: it is {status}.")
    csr = _request(p["Csr"])
    algorithm = re.fullmatch(r"SHA(256|384|512)WITH(RSA|ECDSA)", p["SigningAlgorithm"])
    if not algorithm or (algorithm[2] == "RSA") != isinstance(ca.key, rsa.RSAPrivateKey):
        raise AWSError("InvalidArgsException", f"The signing algorithm {p['SigningAlgorithm']} does not match the key "
                                               "of the certificate authority.")
    begin, end = _period(ca, p, kind in END_ENTITIES)
    builder = (x509.CertificateBuilder().subject_name(csr.subject).public_key(csr.public_key())
               .issuer_name(csr.subject if root else ca.certificate.subject)
               .serial_number(x509.random_serial_number()).not_valid_before(begin).not_valid_after(end))
    for extension in _extensions(ca, csr, p, kind, root or below, length and int(length), variety or ""):
        builder = builder.add_extension(extension.value, extension.critical)
    made = builder.sign(ca.key, getattr(hashes, f"SHA{algorithm[1]}")())
    chain = "" if root else "\n".join(text.strip() for text in [ca.certificate_bytes.decode(), _above(ca)] if text)
    return made.public_bytes(serialization.Encoding.PEM), chain


def _above(ca):
    """The chain that was imported with the CA's certificate; moto keeps it as it was sent."""
    return base64.b64decode(ca.certificate_chain).decode() if ca.certificate_chain else ""


def _request(text):
    try:
        csr = x509.load_pem_x509_csr(base64.b64decode(text))
        if not csr.is_signature_valid:
            raise InvalidSignature
    except (ValueError, InvalidSignature):
        raise AWSError("MalformedCSRException", "The certificate signing request is invalid.") from None
    if not csr.subject.rdns and not any(e.oid == ExtensionOID.SUBJECT_ALTERNATIVE_NAME for e in csr.extensions):
        raise AWSError("MalformedCSRException", "The request has neither a subject nor a subject alternative name.")
    return csr


def _moment(given, name, kinds, start=None):
    """What a Validity stands for."""
    kind, value = given["Type"], int(given["Value"])
    if kind not in kinds or value < 1:
        raise _invalid(name, f"{kind} {value} is not supported")
    if kind == "DAYS":
        return start + datetime.timedelta(days=value)
    if kind in ("MONTHS", "YEARS"):
        months = start.month - 1 + value * (12 if kind == "YEARS" else 1)
        year, month = start.year + months // 12, months % 12 + 1
        return start.replace(year=year, month=month, day=min(start.day, calendar.monthrange(year, month)[1]))
    if kind == "ABSOLUTE":
        return datetime.datetime.fromtimestamp(value, datetime.timezone.utc)
    digits = str(value).zfill(12)
    if len(digits) == 12:  # UTCTime
        digits = ("19" if digits[:2] >= "50" else "20") + digits
    return datetime.datetime.strptime(digits, "%Y%m%d%H%M%S").replace(tzinfo=datetime.timezone.utc)


def _period(ca, p, end_entity):
    start = now()
    end = _moment(p["Validity"], "validity", ("DAYS", "MONTHS", "YEARS", "ABSOLUTE", "END_DATE"), start)
    if end <= start:
        raise _invalid("validity", "The end must be in the future")
    if ca.certificate and end > ca.certificate.not_valid_after_utc:
        raise AWSError("ValidationException", "The validity specified exceeds that of the certificate authority.")
    if end_entity and ca.usage_mode == "SHORT_LIVED_CERTIFICATE" and end - start > SHORT_LIVED:
        raise AWSError("ValidationException", "A certificate authority for short-lived certificates issues for 7 days "
                                              "at most.")
    if "ValidityNotBefore" in p:
        return _moment(p["ValidityNotBefore"], "validityNotBefore", ("ABSOLUTE",)), end
    return start - BACKDATED, end


def _extensions(ca, csr, p, kind, is_ca, length, variety):
    """Those of the template, then of the API, then of the request: what comes first wins."""
    usage = dict.fromkeys(("digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
                           "key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"), False)
    for name in ("digital_signature", *(("key_cert_sign", "crl_sign") if is_ca else ("key_encipherment",))):
        usage[name] = True
    template = [(x509.BasicConstraints(is_ca, length), is_ca), (x509.KeyUsage(**usage), True),
                (x509.SubjectKeyIdentifier.from_public_key(csr.public_key()), False)]
    if ca.certificate:
        above = ca.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        template.append((x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(above), False))
    if kind in END_ENTITIES:
        template.append((x509.ExtendedKeyUsage(END_ENTITIES[kind]), False))
    made = [x509.Extension(value.oid, critical, value) for value, critical in template]
    passed = [*_passed(p)] if variety.startswith("API") else []  # ignored otherwise
    passed += [e for e in csr.extensions
               if variety.endswith("CSR") or e.oid == ExtensionOID.SUBJECT_ALTERNATIVE_NAME]
    for extension in passed:
        if extension.oid not in [e.oid for e in made]:
            made.append(extension)
    return made


def _passed(p):
    given = p.get("ApiPassthrough", {})
    if given.keys() - {"Extensions"} or given.get("Extensions", {}).keys() - {"CustomExtensions"}:
        raise AWSError("InvalidArgsException", "not emulated: passthrough of anything but custom extensions")
    for e in given.get("Extensions", {}).get("CustomExtensions", []):
        if not 1 <= len(e["Value"]) <= 4096:
            raise _invalid("apiPassthrough.extensions.customExtensions.1.member.value",
                           "Member must have length less than or equal to 4096")
        oid = x509.ObjectIdentifier(e["ObjectIdentifier"])
        value = x509.UnrecognizedExtension(oid, base64.b64decode(e["Value"]))
        yield x509.Extension(oid, e.get("Critical", False), value)
