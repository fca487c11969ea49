"""Damage to files, for the tests of what reads them."""

from pathlib import Path


def overwrite(path: Path, place: int, noise: bytes) -> None:
    """Write some bytes over a file, from a place on that is counted round; its length may grow at the end.

    In a new file, since what is mapped into memory of the old one is not to change.
    """
    whole = bytearray(path.read_bytes())
    start = place % len(whole)
    whole[start : start + len(noise)] = noise
    path.unlink()
    path.write_bytes(whole)
