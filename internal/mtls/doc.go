// Package mtls turns secrets into a published directory of certificates that never breaks a reader.
//
// A Rotator watches its secrets, each behind a Source. What it reads becomes a bundle (syntax, labels, strength),
// the bundles together become a set (pairs, chains, dates, file names), and a set becomes a generation:
//
//	/etc/ecs/mtls/                                   never replaced: containers hold its inode
//	    ..gen-20261124T024112.000000Z-3f9c1a2b/      the files, manifest.json, evidence.json
//	    ..data -> ..gen-20261124T024112.000000Z-3f9c1a2b
//	    ..prev -> the generation before
//	    client.crt -> ..data/client.crt              and one such link for every other file
//	    web/                                         a consumer's own, the same with fewer files
//
// The promises:
//
//   - Nothing is published that was not validated as a whole: the keys fit, the chains lead to the anchors beside
//     them, the dates hold. What is refused leaves the last good set where it is, with a reason that names the
//     secret and the field and never shows a byte of content.
//   - The rename of ..data is the only switch. A reader that resolves ..data once and opens everything from there, or that
//     opens one file such as client.pem once, sees one generation. The generation before stays for at least ten minutes,
//     for readers that are half-way through it, and its files get an attribute change, for readers that watch files.
//   - What others change is noticed within a second and put back as a new generation, within bounds. While the Rotator
//     runs, the current files are immutable where that can be had.
//   - A crash at any step leaves the old set or the new one, and the next start finishes or undoes the rest.
//   - A failure to reach the secrets changes nothing: restarting the agent does not mend Secrets Manager.
//
// It leaves to others: talking to AWS (a Source), attestation (Config.Evidence), and the decision what a failure
// means for the node (Status).
package mtls
