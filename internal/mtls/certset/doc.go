// Package certset turns the bytes of secrets into a validated set of files to publish.
//
// Parse reads one version of one secret: syntax, labels, strength. Assemble puts the bundles of all secrets together
// and verifies what depends on more than one field or on the time: pairs, chains, dates, file names. Restore makes the
// same set again from files that were published.
//
// The package does no I/O. Its errors name the secret and the field and never hold content of a secret: at most the
// subject, the dates and the like of a certificate, which are public.
package certset
