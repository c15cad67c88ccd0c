// Package mtls turns secrets into a published directory of certificates that never breaks a reader.
//
// A Rotator watches its secrets, each behind a source.Source. What it reads becomes a bundle (syntax, labels,
// strength), the bundles together become a set (pairs, chains, dates, file names), and a set becomes a generation in
// the published directory and in those of consumers below it. There is a room for each part:
//
//   - source: where secrets come from;
//   - certset: from bytes to a validated set, without I/O;
//   - directory: one published directory on disk, with guard, which notices what others change in it;
//   - this package: when to look, and what to publish.
//
// The promises:
//
//   - Nothing is published that was not validated as a whole: the keys fit, the chains lead to the anchors beside them,
//     the dates hold. What is rejected leaves the last good set where it is, with a reason that names the secret and
//     the field and never shows a byte of content.
//   - The rename of ..data is the only switch. A reader that resolves ..data once and opens everything from there, or
//     that opens one file such as client.pem once, sees one generation.
//   - What others change is noticed within a second and put back as a new generation, within bounds. While the Rotator
//     runs, the current files are immutable where that is possible.
//   - A crash at any step leaves the old set or the new one, and the next start finishes or undoes the rest.
//   - A failure to reach the secrets changes nothing: restarting the agent does not repair Secrets Manager.
//
// It leaves to others: talking to AWS (a Source), attestation (Config.Evidence), and the decision what a failure means
// for the node (Status).
package mtls
