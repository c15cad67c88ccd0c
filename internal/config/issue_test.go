package config

import (
	"slices"
	"strings"
	"testing"

	"sevagent/internal/must"
)

const issuingCA = "arn:aws:acm-pca:us-east-2:123456789012:certificate-authority/11111111-2222-3333-4444-555555555555"

// load1 loads a configuration with one entry of mtls.issue.
func load1(entry string) (Config, error) { return loadText("mtls:\n  issue:\n  - " + entry + "\n") }

func TestIssue(t *testing.T) {
	for _, c := range []struct {
		entry    string
		kinds    []string
		template string
		evidence bool
	}{
		{`{name: node, from: acm-pca, ca: "CA", gives: [client]}`,
			[]string{"client"}, "EndEntityClientAuthCertificate/V1", false},
		{`{name: node, from: acm-pca, ca: "CA", gives: [server, client], validity_days: 7, key: ecdsa-p384}`,
			[]string{"client", "server"}, "EndEntityCertificate/V1", false},
		{`{name: node, from: acm-pca, ca: "CA", gives: [server], evidence: extension, dns: ["{private_dns}"]}`,
			[]string{"server"}, "EndEntityServerAuthCertificate_APIPassthrough/V1", true},
		{`{name: node, from: acm-pca, ca: "CA", ` +
			`template: "arn:aws:acm-pca:::template/EndEntityClientAuthCertificate_APIPassthrough/V1"}`,
			[]string{"client"}, "EndEntityClientAuthCertificate_APIPassthrough/V1", true},
		{`{name: node, from: acm-pca, ca: "CA", template: EndEntityCertificate/V1, ` +
			`common_name: "{instance_id}.{region}", uri: ["spiffe://example.org/{account}/{instance_id}"]}`,
			[]string{"client", "server"}, "EndEntityCertificate/V1", false},
		{`{name: web, from: acme, gives: [server], directory: https://ca.example.org/dir, roots: /etc/ca.pem, ` +
			`eab: prod/eab, contact: ["mailto:ops@example.org"], profile: short, ` +
			`challenge: http-01, challenge_listen: ":8080", dns: ["*.example.org"]}`,
			[]string{"server"}, "EndEntityServerAuthCertificate/V1", false},
		{`{name: spire, from: spiffe, gives: [client, server], socket: /run/spire/api.sock, ` +
			`socket_uid: 998, socket_in_container: true, id: "spiffe://example.org/node"}`,
			[]string{"client", "server"}, "EndEntityCertificate/V1", false},
	} {
		cfg := must.Get(load1(strings.ReplaceAll(c.entry, `"CA"`, issuingCA)))(t, "load %s", c.entry)
		s := cfg.MTLS.Issue[0]
		if !slices.Equal(s.Kinds(), c.kinds) || s.TemplateName() != c.template || s.WithEvidence() != c.evidence {
			t.Errorf("%s: gives %q by %s, evidence %v", c.entry, s.Kinds(), s.TemplateName(), s.WithEvidence())
		}
	}
}

func TestIssueRefuses(t *testing.T) {
	pca := `{name: node, from: acm-pca, gives: [client], ca: ` + issuingCA
	acme := `{name: web, from: acme, gives: [server], directory: https://ca.example.org/dir, dns: [example.org]`
	spire := `{name: spire, from: spiffe, gives: [client]`
	for _, c := range [][2]string{
		{`{name: Node, from: acm-pca, gives: [client], ca: ` + issuingCA + "}", `.name: "Node" is not a name`},
		{`{name: node, from: acm-pca, ca: ` + issuingCA + "}", ".gives: empty; name client, server or both"},
		{`{name: node, from: vault, gives: [client]}`, `.from: "vault" is not one of acm-pca, acme, spiffe`},
		{`{name: node, from: acm-pca, gives: [peer], ca: ` + issuingCA + "}",
			`.gives[0]: "peer" is not one of client, server`},
		{`{name: node, from: acm-pca, gives: [client], ca: x}`, `.ca: "x" is not the ARN of a Private CA`},
		{pca + ", validity_days: 1d}", ".validity_days: "},
		{pca + ", validity_days: -1}", ".validity_days: -1 is not 1 to 397"},
		{pca + ", validity_days: 398}", ".validity_days: 398 is not 1 to 397"},
		{pca + ", key: ed25519}", `.key: "ed25519" is not one of ecdsa-p256, ecdsa-p384`},
		{pca + `, template: "Own template"}`, `.template: "Own template" is not the name of a template`},
		{pca + ", template: EndEntityCertificate/V1, evidence: extension}", "needs an _APIPassthrough template"},
		{pca + ", template: EndEntityServerAuthCertificate/V1}", "makes no certificates for a client, which gives names"},
		{pca + ", directory: https://ca.example.org}", ".directory: is for from: acme"},
		{pca + `, dns: ["{task_id}.example.org"]}`,
			`"{task_id}" is not one of {instance_id}, {account}, {region}, {private_dns}`},
		{pca + `, dns: ["{instance_id.example.org"]}`, `.dns[0]: "{instance_id.example.org" is not one of`},
		{pca + `, dns: ["a b"]}`, `.dns[0]: "a b" is not a DNS name`},
		{pca + `, uri: ["node"]}`, `.uri[0]: "node" is not a URI with a scheme and a host`},
		{pca + ", common_name: " + strings.Repeat("x", 65) + "}", "is not a common name: at most 64"},
		{acme + ", evidence: extension}", ".evidence: only acm-pca can put evidence into the certificate"},
		{acme + ", challenge: dns-01}", `.challenge: "dns-01" is not one of none, http-01`},
		{acme + ", challenge_listen: ':8080'}", ".challenge_listen: is for challenge: http-01"},
		{acme + ", challenge: http-01}", `.challenge_listen: "" is not host:port`},
		{acme + ", challenge: http-01, challenge_listen: '80'}", `.challenge_listen: "80" is not host:port`},
		{acme + ", uri: ['spiffe://a.b/c']}", ".uri: ACME is for DNS names"},
		{acme + ", common_name: else.example.org}", `.common_name: "else.example.org" is not one of dns`},
		{acme + ", roots: ca.pem}", `.roots: "ca.pem" is not an absolute path`},
		{acme + ", contact: ['tel:112']}", `.contact[0]: "tel:112" is not mailto: with one address`},
		{acme + ", contact: ['mailto:a@b.c,d@e.f']}", "is not mailto: with one address"},
		{acme + ", contact: ['mailto:a@b.c?subject=x']}", "is not mailto: with one address"},
		{acme + ", eab: a b}", `.eab: "a b" is not the name of a secret`},
		{`{name: web, from: acme, gives: [server], directory: "http://ca.example.org", dns: [a.b]}`,
			".directory: \"http://ca.example.org\" is not https"},
		{`{name: web, from: acme, gives: [server], directory: "http://127.0.0.1:14000/dir", dns: [a.b]}`,
			"is not https, which ACME needs even on loopback"},
		{`{name: web, from: acme, gives: [server], directory: https://ca.example.org}`, ".dns: empty"},
		{spire + ", socket: api.sock}", `.socket: "api.sock" is not an absolute path`},
		{spire + ", id: node}", `.id: "node" is not a SPIFFE ID`},
		{spire + ", id: 'spiffe://example.org/a/../b'}", "is not a SPIFFE ID"},
		{spire + ", id: 'spiffe://example.org//b'}", "is not a SPIFFE ID"},
		{pca + ", socket_uid: 5}", ".socket_uid: is for from: spiffe"},
		{spire + ", dns: [a.b]}", "SPIFFE's registration entry decides"},
		{pca + "}\n  - " + strings.Replace(pca, "client", "server", 1) + "}", "issue[1].name: the same name as mtls.issue[0]"},
		{pca + "}\n  - " + strings.Replace(spire, "client", "client, server", 1) + "}",
			`issue[1].gives: "client" is what mtls.issue[0] gives`},
		{pca + "}\n  - " + acme + "}\n  - " + spire + "}", "mtls.issue: 3 sources, at most 2 are allowed"},
		{pca + ", evidence: extension}\nattestation: {mode: off}", "there is none with attestation.mode: off"},
	} {
		if _, err := load1(c[0]); err == nil || !strings.Contains(err.Error(), c[1]) {
			t.Errorf("%s:\ngot  %v\nwant %s", c[0], err, c[1])
		}
	}
}
