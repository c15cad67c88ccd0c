// Package directory publishes validated sets of files into one directory on disk, and never breaks a reader.
//
//	/etc/ecs/mtls/                                   never replaced: containers hold its inode
//	    ..gen-20261124T024112.000000Z-3f9c1a2b/      the files, manifest.json, evidence.json
//	    ..data -> ..gen-20261124T024112.000000Z-3f9c1a2b
//	    ..prev -> the generation before
//	    client.crt -> ..data/client.crt              and one such link for every other file
//	    web/                                         a consumer's own, the same with fewer files
//
// The rename of ..data is the only switch. A crash at any step leaves the old generation or the new one, and the next
// Open finishes or undoes the rest. The generation before stays for at least ten minutes, for readers that are half-way
// through it, and its files get an attribute change, for readers that watch files.
//
// What to publish, and when, is the caller's decision. The guard beside this package notices what others change.
package directory
