package config

import (
	"fmt"
	"slices"

	"go.yaml.in/yaml/v3"

	"sevagent/internal/pattern"
)

// Encode returns c as a file that Load reads as the same configuration: its keys, and nobody's comments. It leaves out
// what URLs have before the host, where a password may be.
func (c Config) Encode() ([]byte, error) {
	var n yaml.Node
	if err := n.Encode(c); err != nil {
		return nil, fmt.Errorf("encode the configuration: %w", err)
	}
	tidy(&n, c, false)
	return yaml.Marshal(&n)
}

// MarshalYAML is the form in which Owner is read.
func (o Owner) MarshalYAML() (any, error) { return fmt.Sprintf("%d:%d", o.UID, o.GID), nil }

var userInfo = pattern.New(`://[^/@]*@`)

// tidy spells modes as they are read, in octal, and leaves out the user of URLs, empty lists and, in the entries of
// lists, what says nothing.
func tidy(n *yaml.Node, c Config, entry bool) {
	var kept []*yaml.Node
	for i, child := range n.Content {
		tidy(child, c, entry || n.Kind == yaml.SequenceNode)
		if child.Kind == yaml.ScalarNode {
			child.Value = userInfo.ReplaceAllString(child.Value, "://…@")
		}
		if n.Kind != yaml.MappingNode || i%2 == 0 {
			continue
		}
		switch key := n.Content[i-1]; {
		case child.Kind != yaml.ScalarNode && len(child.Content) == 0:
		case entry && slices.Contains([]string{"", "0", "false"}, child.Value) && child.Kind == yaml.ScalarNode:
		default:
			switch key.Value {
			case "key_mode":
				child.SetString(fmt.Sprintf("%04o", c.MTLS.KeyMode))
			case "cert_mode":
				child.SetString(fmt.Sprintf("%04o", c.MTLS.CertMode))
			}
			kept = append(kept, key, child)
		}
	}
	if n.Kind == yaml.MappingNode {
		n.Content = kept
	}
}
