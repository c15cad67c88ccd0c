package mtls

// Secret is the content of a secret. It is a closure so that nothing can print it by accident: no format verb, log
// handler or JSON encoder looks inside a function. The bytes belong to the Secret; callers do not change them.
type Secret func() []byte

// NewSecret returns a Secret that holds content.
func NewSecret(content []byte) Secret {
	return func() []byte { return content }
}
