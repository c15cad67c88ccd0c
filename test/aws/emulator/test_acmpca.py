"""AWS Private CA, as its user guide and API reference have it."""

import base64
import datetime
import json
import os
import subprocess
import sys
import tempfile
import unittest.mock

import boto3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from emulator import acmpca
from support import REGION, EmulatorTest, client

PREFIX = "arn:aws:acm-pca:::template/"
CLIENT = "EndEntityClientAuthCertificate/V1"
PASSTHROUGH = "EndEntityClientAuthCertificate_APIPassthrough/V1"
BOTH = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
EVIDENCE = "1.3.6.1.5.5.7.1.35"
UNKNOWN = x509.ObjectIdentifier("1.2.3.4")


def request(*extensions, name="node-1", key=None):
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else []))
    for extension in extensions:
        builder = builder.add_extension(extension, False)
    key = key or ec.generate_private_key(ec.SECP256R1())
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


class PrivateCA(EmulatorTest):
    def setUp(self):
        super().setUp()
        self.pca = client("acm-pca")

    def created(self, key="EC_prime256v1", name="Root", **more):
        return self.pca.create_certificate_authority(
            CertificateAuthorityType="ROOT", CertificateAuthorityConfiguration={
                "KeyAlgorithm": key, "SigningAlgorithm": "SHA256WITHECDSA", "Subject": {"CommonName": name}},
            **more)["CertificateAuthorityArn"]

    def root(self, days=3650, algorithm="SHA256WITHECDSA", **more):
        ca = self.created(**more)
        csr = self.pca.get_certificate_authority_csr(CertificateAuthorityArn=ca)["Csr"]
        arn = self.issue(ca, "RootCACertificate/V1", csr.encode(), days=days, SigningAlgorithm=algorithm)
        made = self.collect(ca, arn)
        self.pca.import_certificate_authority_certificate(CertificateAuthorityArn=ca, Certificate=made["Certificate"])
        return ca

    def below(self, root, **more):
        ca = self.created(name="Below", **more)
        csr = self.pca.get_certificate_authority_csr(CertificateAuthorityArn=ca)["Csr"]
        made = self.collect(root, self.issue(root, "SubordinateCACertificate_PathLen0/V1", csr.encode(), days=365))
        self.pca.import_certificate_authority_certificate(
            CertificateAuthorityArn=ca, Certificate=made["Certificate"], CertificateChain=made["CertificateChain"])
        return ca

    def issue(self, ca, template=CLIENT, csr=None, days=1, **more):
        given = {"SigningAlgorithm": "SHA256WITHECDSA", "Validity": {"Type": "DAYS", "Value": days}, **more}
        return self.pca.issue_certificate(CertificateAuthorityArn=ca, TemplateArn=PREFIX + template,
                                          Csr=csr or request(), **given)["CertificateArn"]

    def collect(self, ca, arn):
        """Asks until the certificate is there."""
        self.refused("RequestInProgressException", self.pca.get_certificate, CertificateAuthorityArn=ca,
                     CertificateArn=arn)
        return self.pca.get_certificate(CertificateAuthorityArn=ca, CertificateArn=arn)

    def certificate(self, ca, *template, **more):
        made = self.collect(ca, self.issue(ca, *template, **more))["Certificate"]
        return x509.load_pem_x509_certificate(made.encode())

    # What is issued

    def test_templates(self):
        ca = self.root()
        for name, usages in [("EndEntityCertificate", BOTH), ("EndEntityClientAuthCertificate", BOTH[1:]),
                             ("EndEntityServerAuthCertificate", BOTH[:1])]:
            for variety in ("", "_APIPassthrough", "_CSRPassthrough", "_APICSRPassthrough"):
                with self.subTest(name + variety):
                    made = self.certificate(ca, f"{name}{variety}/V1")
                    found = {e.oid: e for e in made.extensions}
                    self.assertEqual(list(made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value), usages)
                    usage = made.extensions.get_extension_for_class(x509.KeyUsage)
                    self.assertTrue(usage.critical and usage.value.digital_signature and usage.value.key_encipherment)
                    self.assertFalse(usage.value.key_cert_sign)
                    constraints = made.extensions.get_extension_for_class(x509.BasicConstraints)
                    self.assertEqual((constraints.value.ca, constraints.critical), (False, False))
                    self.assertEqual(len(found), 5)  # and the two key identifiers
        made = self.pca.issue_certificate(  # the template to be used without one
            CertificateAuthorityArn=ca, Csr=request(), SigningAlgorithm="SHA256WITHECDSA",
            Validity={"Type": "DAYS", "Value": 1})["CertificateArn"]
        made = x509.load_pem_x509_certificate(self.collect(ca, made)["Certificate"].encode())
        self.assertEqual(list(made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value), BOTH)
        for name in ("EndEntityClientAuthCertificate/V2", "NoSuch/V1", "EndEntityCertificate_Passthrough/V1"):
            self.refused("InvalidArgsException", self.issue, ca=ca, template=name)

    def test_names_are_those_of_the_request(self):
        """With every template, base ones included."""
        names = x509.SubjectAlternativeName([x509.DNSName("other-node"),
                                             x509.UniformResourceIdentifier("spiffe://a/b")])
        made = self.certificate(self.root(), csr=request(names, name="anything"))
        self.assertEqual(made.subject.rfc4514_string(), "CN=anything")
        self.assertEqual(made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value, names)

    def test_passthrough(self):
        ca = self.root()
        server = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        csr = request(server, x509.UnrecognizedExtension(UNKNOWN, b"\x05\x00"))
        value = base64.b64encode(b"\x04\x02hi").decode()
        api = {"Extensions": {"CustomExtensions": [{"ObjectIdentifier": EVIDENCE, "Value": value}]}}
        for variety, want in [("", set()), ("_APIPassthrough", {EVIDENCE}), ("_CSRPassthrough", {"1.2.3.4"}),
                              ("_APICSRPassthrough", {EVIDENCE, "1.2.3.4"})]:
            with self.subTest(variety):
                made = self.certificate(ca, f"EndEntityClientAuthCertificate{variety}/V1", csr=csr, ApiPassthrough=api)
                self.assertEqual({e.oid.dotted_string for e in made.extensions} & {EVIDENCE, "1.2.3.4"}, want)
                usages = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
                self.assertEqual(list(usages), BOTH[1:])  # the template comes first
        evidence = made.extensions.get_extension_for_oid(x509.ObjectIdentifier(EVIDENCE))
        self.assertEqual((evidence.value.value, evidence.critical), (b"\x04\x02hi", False))

    def test_extension_size(self):
        """CustomExtension: Value has at most 4,096 characters."""
        ca = self.root()
        for size, good in (3072, True), (3073, False):
            value = base64.b64encode(bytes(size)).decode()
            api = {"Extensions": {"CustomExtensions": [{"ObjectIdentifier": EVIDENCE, "Value": value}]}}
            if good:
                self.issue(ca, PASSTHROUGH, ApiPassthrough=api)
            else:
                self.assertIn("4096", self.refused("ValidationException", self.issue, ca=ca, template=PASSTHROUGH,
                                                   ApiPassthrough=api))

    def test_validity(self):
        ca = self.root()
        at = datetime.datetime(2030, 1, 31, 12, 34, 54, tzinfo=datetime.timezone.utc)
        with unittest.mock.patch.object(acmpca, "now", lambda: at):
            for kind, value, want in [
                ("DAYS", 90, "2030-05-01 12:34:54"), ("MONTHS", 1, "2030-02-28 12:34:54"),
                ("YEARS", 1, "2031-01-31 12:34:54"), ("ABSOLUTE", 1900000000, "2030-03-17 17:46:40"),
                ("END_DATE", 20310101000000, "2031-01-01 00:00:00"), ("END_DATE", 310101000000, "2031-01-01 00:00:00"),
            ]:
                with self.subTest(f"{kind} {value}"):
                    made = self.certificate(ca, Validity={"Type": kind, "Value": value})
                    self.assertEqual(made.not_valid_after_utc.strftime("%F %T"), want)
                    self.assertEqual(made.not_valid_before_utc, at - datetime.timedelta(minutes=60))
            begin = at - datetime.timedelta(minutes=1)
            made = self.certificate(ca, ValidityNotBefore={"Type": "ABSOLUTE", "Value": int(begin.timestamp())})
            self.assertEqual(made.not_valid_before_utc, begin)
            self.refused("ValidationException", self.issue, ca=ca, Validity={"Type": "ABSOLUTE", "Value": 1800000000})
        self.assertIn("exceeds", self.refused("ValidationException", self.issue, ca=ca, days=3651))

    def test_mode(self):
        ca = self.root(UsageMode="SHORT_LIVED_CERTIFICATE")
        self.issue(ca, days=7)
        self.refused("ValidationException", self.issue, ca=ca, days=8)
        for arn, want in (ca, "SHORT_LIVED_CERTIFICATE"), (self.root(), "GENERAL_PURPOSE"):
            got = self.pca.describe_certificate_authority(CertificateAuthorityArn=arn)["CertificateAuthority"]
            self.assertEqual(got["UsageMode"], want)

    def test_keys(self):
        """A CA has the key that was asked for, and the algorithm has to fit it."""
        for name, kind, size, good, bad in [
            ("RSA_3072", rsa.RSAPublicKey, 3072, "SHA256WITHRSA", "SHA256WITHECDSA"),
            ("EC_prime256v1", ec.EllipticCurvePublicKey, 256, "SHA256WITHECDSA", "SHA256WITHRSA"),
            ("EC_secp384r1", ec.EllipticCurvePublicKey, 384, "SHA384WITHECDSA", "SHA384WITHRSA"),
        ]:
            with self.subTest(name):
                ca = self.root(key=name, algorithm=good)
                own = self.pca.get_certificate_authority_certificate(CertificateAuthorityArn=ca)["Certificate"]
                own = x509.load_pem_x509_certificate(own.encode())
                self.assertIsInstance(own.public_key(), kind)
                self.assertEqual(own.public_key().key_size, size)
                made = self.certificate(ca, SigningAlgorithm=good)
                made.verify_directly_issued_by(own)
                self.refused("InvalidArgsException", self.issue, ca=ca, SigningAlgorithm=bad)

    def test_chain(self):
        """It leads to the root; a root has none of its own."""
        root = self.root()
        below = self.below(root)
        own = self.pca.get_certificate_authority_certificate
        self.assertNotIn("CertificateChain", own(CertificateAuthorityArn=root))
        for ca, want in (root, ["CN=Root"]), (below, ["CN=Below", "CN=Root"]):
            made = self.collect(ca, self.issue(ca))
            chain = x509.load_pem_x509_certificates(made["CertificateChain"].encode())
            self.assertEqual([c.subject.rfc4514_string() for c in chain], want)
            x509.load_pem_x509_certificate(made["Certificate"].encode()).verify_directly_issued_by(chain[0])
        chain = own(CertificateAuthorityArn=below)["CertificateChain"]
        self.assertEqual(x509.load_pem_x509_certificate(chain.encode()).subject.rfc4514_string(), "CN=Root")

    # When

    def test_pending(self):
        ca = self.root()
        self.control("private-ca", pending=-1)
        arn = self.issue(ca)
        for _ in range(3):
            self.refused("RequestInProgressException", self.pca.get_certificate, CertificateAuthorityArn=ca,
                         CertificateArn=arn)
        self.control("private-ca", pending=0)
        self.pca.get_certificate(CertificateAuthorityArn=ca, CertificateArn=arn)

    def test_waiter(self):
        """The AWS CLI waits as its waiter has it."""
        ca = self.root()
        with tempfile.NamedTemporaryFile("wb", suffix=".csr") as file:
            file.write(request())
            file.flush()
            environment = {**os.environ, "AWS_ENDPOINT_URL": self.url, "AWS_DEFAULT_REGION": REGION}
            aws = [os.path.join(os.path.dirname(sys.executable), "aws"), "--output", "text", "acm-pca"]
            run = lambda *arguments: subprocess.run(  # noqa: E731
                [*aws, *arguments, "--certificate-authority-arn", ca], env=environment, check=True,
                capture_output=True, text=True).stdout.strip()
            arn = run("issue-certificate", "--csr", f"fileb://{file.name}", "--signing-algorithm", "SHA256WITHECDSA",
                      "--template-arn", PREFIX + CLIENT, "--validity", "Value=1,Type=DAYS")
        run("wait", "certificate-issued", "--certificate-arn", arn)
        made = run("get-certificate", "--certificate-arn", arn, "--query", "Certificate")
        self.assertEqual(x509.load_pem_x509_certificate(made.encode()).subject.rfc4514_string(), "CN=node-1")

    def test_token(self):
        """It is remembered for five minutes, and stands for one certificate."""
        ca, other, csr = self.root(), self.root(), request()
        first = self.issue(ca, csr=csr, IdempotencyToken="t")
        self.assertEqual(self.issue(ca, csr=csr, IdempotencyToken="t"), first)
        self.assertEqual(self.issue(ca, IdempotencyToken="t"), first)
        self.assertNotEqual(self.issue(ca, csr=csr, IdempotencyToken="u"), first)
        self.assertNotEqual(self.issue(other, csr=csr, IdempotencyToken="t"), first)
        self.assertNotEqual(self.issue(ca, csr=csr), self.issue(ca, csr=csr))
        later = acmpca.now() + datetime.timedelta(minutes=5)
        with unittest.mock.patch.object(acmpca, "now", lambda: later):
            self.assertNotEqual(self.issue(ca, csr=csr, IdempotencyToken="t"), first)
        self.refused("ValidationException", self.issue, ca=ca, IdempotencyToken="t" * 37)

    def test_quota(self):
        ca = self.root()
        self.control("private-ca", rate=0.001)
        arn = self.issue(ca)
        self.refused("ThrottlingException", self.issue, ca=ca)
        self.collect(ca, arn)  # has a quota of its own
        self.control("private-ca")
        self.issue(ca)

    # What is refused

    def test_state(self):
        ca = self.created()
        self.refused("InvalidStateException", self.issue, ca=ca)
        ca = self.root()
        arn = self.issue(ca)
        self.pca.update_certificate_authority(CertificateAuthorityArn=ca, Status="DISABLED")
        self.assertIn("DISABLED", self.refused("InvalidStateException", self.issue, ca=ca))
        self.collect(ca, arn)
        self.pca.update_certificate_authority(CertificateAuthorityArn=ca, Status="ACTIVE")
        self.issue(ca)
        later = acmpca.now() + datetime.timedelta(days=3650)
        with unittest.mock.patch.object(acmpca, "now", lambda: later):
            self.assertIn("EXPIRED", self.refused("InvalidStateException", self.issue, ca=ca))

    def test_request(self):
        ca = self.root()
        signed = x509.load_pem_x509_csr(request()).public_bytes(serialization.Encoding.DER)
        forged = base64.encodebytes(signed[:-1] + bytes([signed[-1] ^ 1])).decode()
        for csr in (b"x", request(name=None),
                    f"-----BEGIN CERTIFICATE REQUEST-----\n{forged}-----END CERTIFICATE REQUEST-----\n".encode()):
            self.refused("MalformedCSRException", self.issue, ca=ca, csr=csr)

    def test_unknown(self):
        ca = self.root()
        self.refused("ResourceNotFoundException", self.issue, ca=ca[:-1] + "x")
        get = self.pca.get_certificate
        self.refused("ResourceNotFoundException", get, CertificateAuthorityArn=ca, CertificateArn=f"{ca}/certificate/1")
        self.refused("InvalidArnException", get, CertificateAuthorityArn=ca, CertificateArn=ca)

    def test_revoked(self):
        """GetCertificate returns certificates in the states ISSUED, EXPIRED and REVOKED."""
        ca = self.root()
        arn = self.issue(ca)
        made = x509.load_pem_x509_certificate(self.collect(ca, arn)["Certificate"].encode())
        serial = f"{made.serial_number:040X}"
        serial = ":".join(serial[i:i + 2] for i in range(0, 40, 2))
        self.pca.revoke_certificate(CertificateAuthorityArn=ca, CertificateSerial=serial, RevocationReason="SUPERSEDED")
        self.pca.get_certificate(CertificateAuthorityArn=ca, CertificateArn=arn)

    def test_condition_on_the_template(self):
        """acm-pca:TemplateArn, and the CA as the resource."""
        ca, other = self.root(), self.root()
        trust = {"Statement": [{"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}]}
        role = self.iam.create_role(RoleName="node", AssumeRolePolicyDocument=json.dumps(trust))["Role"]
        policy = {"Version": "2012-10-17", "Statement": [
            {"Effect": "Allow", "Action": "acm-pca:IssueCertificate", "Resource": ca,
             "Condition": {"StringEquals": {"acm-pca:TemplateArn": PREFIX + CLIENT}}},
            {"Effect": "Allow", "Action": "acm-pca:GetCertificate", "Resource": ca}]}
        self.iam.put_role_policy(RoleName="node", PolicyName="p", PolicyDocument=json.dumps(policy))
        keys = boto3.client("sts", region_name=REGION, endpoint_url=self.url).assume_role(
            RoleArn=role["Arn"], RoleSessionName="node")["Credentials"]
        self.pca = boto3.client(
            "acm-pca", region_name=REGION, endpoint_url=self.url, aws_access_key_id=keys["AccessKeyId"],
            aws_secret_access_key=keys["SecretAccessKey"], aws_session_token=keys["SessionToken"])
        self.collect(ca, self.issue(ca))
        for denied in ({"ca": other}, {"ca": ca, "template": PASSTHROUGH},
                       {"ca": ca, "template": "EndEntityCertificate/V1"}):
            self.assertIn("acm-pca:IssueCertificate", self.refused("AccessDeniedException", self.issue, **denied))
        self.refused("AccessDeniedException", self.pca.get_certificate_authority_certificate,
                     CertificateAuthorityArn=ca)
