"""The demo's tasks: real programs with real work. Payload as JSON on stdin, result as JSON on stdout (standard library)."""

import hashlib
import json
import sys
import time
from typing import Any


def primes(payload: dict[str, Any]) -> dict[str, Any]:
    below = int(payload["below"])
    sieve = bytearray([1]) * below
    sieve[:2] = b"\0\0"
    for n in range(2, int(below**0.5) + 1):
        if sieve[n]:
            sieve[n * n :: n] = bytes(len(range(n * n, below, n)))
    return {"below": below, "primes": sum(sieve)}


def count_words(payload: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, int] = {}
    for word in payload["text"].lower().split():
        found[word] = found.get(word, 0) + 1
    return {"words": sum(found.values()), "most": max(found, key=found.__getitem__)}


def render(payload: dict[str, Any]) -> dict[str, Any]:
    """Hash for `seconds`, as a render would compute for long."""
    end = time.monotonic() + float(payload["seconds"])
    digest, rounds = b"", 0
    while time.monotonic() < end:
        digest = hashlib.sha256(digest * 1000).digest()
        rounds += 1
    return {"frames": rounds, "digest": digest.hex()[:16]}


if __name__ == "__main__":
    work = {"primes": primes, "words": count_words, "render": render}[sys.argv[1]]
    json.dump(work(json.load(sys.stdin)), sys.stdout)
