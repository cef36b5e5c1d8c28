"""A file's digest is that of ``sha256sum``."""

from pathlib import Path

from megatron_mixcpt.jobs.digests import file_digest


def test_a_known_digest(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_digest(tmp_path / "file") == expected
