"""A reader in Python, with nothing but its standard library: reader.py ROLE DIRECTORY.

It loads what is published until its standard input ends, and then prints a tally. Role "python" follows the contract.
Role "python-path" gives client.pem by its path to load_cert_chain, which opens a file without a key of its own twice.
"""

import json
import os
import random
import ssl
import sys
import threading

PAUSE = 0.050  # s between two loads, on average


def handshake(client, server):
    """Shake hands in memory, so that each side judges the other's certificate."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server, server_hostname="localhost"),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    while sides:
        for side in list(sides):
            try:
                side.do_handshake()
                sides.remove(side)
            except ssl.SSLWantReadError:
                pass


def by_contract(directory):
    generation = os.path.join(directory, os.readlink(os.path.join(directory, "..data")))

    def path(name):
        return os.path.join(generation, name)

    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_cert_chain(path("client.crt"), path("client.key"))
    client.load_verify_locations(path("ca.crt"))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(path("server.crt"), path("server.key"))
    server.load_verify_locations(path("ca.crt"))
    server.verify_mode = ssl.CERT_REQUIRED
    handshake(client, server)
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(path("client.pem"))


def by_path(directory):
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(os.path.join(directory, "client.pem"))


def main():
    role, directory = sys.argv[1:]
    load = {"python": by_contract, "python-path": by_path}[role]
    stop = threading.Event()

    def wait_for_end():
        sys.stdin.buffer.read()
        stop.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    tally = {"loads": 0, "mismatches": 0, "missing": 0, "first": ""}
    while not stop.wait(random.uniform(0, 2 * PAUSE)):
        tally["loads"] += 1
        try:
            load(directory)
            continue
        except FileNotFoundError as e:
            tally["missing"] += 1
            failure = repr(e)
        except (OSError, ssl.SSLError) as e:
            tally["mismatches"] += 1
            failure = repr(e)
        tally["first"] = tally["first"] or failure
    print(json.dumps(tally), flush=True)


main()
