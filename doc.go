// Package sevagent is the root of the module; the product is in cmd, client and internal.
package sevagent
