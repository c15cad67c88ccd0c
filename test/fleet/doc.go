// Package fleet simulates up to a hundred thousand nodes in virtual time: what they ask of AWS's APIs at each second
// and when each has its certificate, in boots, rotations and outages.
//
// When a node calls is decided by the product's own code: mtls.Outlook and mtls.Backoff, issue.RenewAt, CollectWait,
// Backoff and Reordered, bootstrap.Pauses, awsconfig.Retryer, the default of poll_interval, and the command in
// cloudformation/cluster.yaml. The services are token buckets with AWS's published quotas. docs/scale.md has the
// results, and what is assumed where AWS publishes nothing.
package fleet
