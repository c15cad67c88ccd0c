"""python -m emulator --port 0

Prints its URL when it listens. Ends on SIGTERM, SIGINT or, with --until-eof, when standard input is closed, so that it
does not outlive a test that was killed.
"""

import argparse
import signal
import sys
import threading

from .server import Server


def main():
    parser = argparse.ArgumentParser(prog="emulator", description="AWS as far as the tests of sevagent need it")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--until-eof", action="store_true", help="end when standard input is closed")
    options = parser.parse_args()

    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    server = Server(options.host, options.port).start()
    if options.until_eof:
        threading.Thread(target=lambda: (sys.stdin.buffer.read(), ended.set()), daemon=True).start()
    print(server.url, flush=True)
    ended.wait()
    server.stop()


main()
