package certset

import "slices"

// Reading is how a secret is to be read, where that is not as it looks.
type Reading struct {
	Validate string `json:"validate,omitempty"` // unverified: PEM outside of JSON is published without being verified
	As       string `json:"as,omitempty"`       // the field, ca_cert or peer_ca, that PEM outside of JSON gives
	Fields   Fields `json:"fields,omitzero"`
}

// unverified is a Reading's Validate.
const unverified = "none"

// Fields are the keys of a JSON secret that has other names for the fields. Empty: it has ours.
type Fields struct {
	ClientCert string `json:"client_cert,omitempty"`
	ClientKey  string `json:"client_key,omitempty"`
	CACert     string `json:"ca_cert,omitempty"`
	ServerCert string `json:"server_cert,omitempty"`
	ServerKey  string `json:"server_key,omitempty"`
	PeerCA     string `json:"peer_ca,omitempty"`
}

// list has the keys in the order of jsonFields.
func (f Fields) list() []string {
	return []string{f.ClientCert, f.ClientKey, f.CACert, f.ServerCert, f.ServerKey, f.PeerCA}
}

// of returns the key of a field.
func (f Fields) of(field string) string {
	if key := f.list()[slices.Index(jsonFields, field)]; key != "" {
		return key
	}
	return field
}
