

def drive():
    """Make a request for each line of standard input, and tell how it went."""
    import sys

    for _ in sys.stdin:
        try:
            answer = get("https://orders.internal/")
            print("ok", answer.text if hasattr(answer, "text") else answer.read().decode(), flush=True)
        except Exception as e:
            print("failed", repr(e), flush=True)


drive()
