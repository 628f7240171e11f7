from pathlib import Path

import pytest

pytest.importorskip("cryptography")
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from autocompress.errors import ArtifactError, UsageError
from autocompress.export.folder import MANIFEST, REQUIRED, read_files, write_files
from autocompress.export.signing import SIGNATURE, load_private_key, sign_artifact

# The first bytes of a safetensors file are the size of its header.
FILES = {name: f"content of {name}".encode() for name in REQUIRED} | {"model.safetensors": bytes(20)}


def write_keys(folder: Path, key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey, password: str = "") -> Path:
    """Write KEY and KEY.pub as openssl does, and return the path of KEY."""
    protection = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    folder.mkdir(exist_ok=True)
    (folder / "key").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, protection))
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / "key.pub").write_bytes(public)
    return folder / "key"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return write_keys(tmp_path / "keys", ed25519.Ed25519PrivateKey.generate())


@pytest.fixture
def signed(tmp_path: Path, key: Path) -> Path:
    write_files(tmp_path / "t0c0", FILES, lambda _: None)
    sign_artifact(tmp_path / "t0c0", load_private_key(key))
    return tmp_path / "t0c0"


def test_a_signed_artifact_is_read_with_its_key(signed: Path, key: Path) -> None:
    assert read_files(signed, key=key.with_suffix(".pub")) == FILES
    assert read_files(signed) == FILES
    # A link to a key is the user's own.
    (signed.parent / "link").symlink_to(key.with_suffix(".pub"))
    assert read_files(signed, key=signed.parent / "link") == FILES


def test_tampering_that_renews_every_checksum_is_noticed(signed: Path, key: Path) -> None:
    signature = (signed / SIGNATURE).read_bytes()
    write_files(signed, {**FILES, "card.md": b"tampered"}, lambda _: None)
    assert read_files(signed)["card.md"] == b"tampered"
    with pytest.raises(ArtifactError, match=r"is not signed: manifest\.sig cannot be read"):
        read_files(signed, key=key.with_suffix(".pub"))
    (signed / SIGNATURE).write_bytes(signature)
    with pytest.raises(ArtifactError, match="is not signed by"):
        read_files(signed, key=key.with_suffix(".pub"))


def test_another_key_and_a_cut_signature_are_refused(signed: Path, key: Path, tmp_path: Path) -> None:
    other = write_keys(tmp_path / "other", ed25519.Ed25519PrivateKey.generate())
    with pytest.raises(ArtifactError, match="is not signed by"):
        read_files(signed, key=other.with_suffix(".pub"))
    for content in (b"", b"x" * 63, b"x" * 65):
        (signed / SIGNATURE).write_bytes(content)
        with pytest.raises(ArtifactError, match="is not signed"):
            read_files(signed, key=key.with_suffix(".pub"))


def test_files_that_are_no_such_key_are_named(signed: Path, key: Path, tmp_path: Path) -> None:
    curve = write_keys(tmp_path / "curve", ec.generate_private_key(ec.SECP256R1()))
    locked = write_keys(tmp_path / "locked", ed25519.Ed25519PrivateKey.generate(), "password")
    for path, message in (
        (curve, "another algorithm; make one with: openssl"),
        (locked, "no unencrypted private key"),
        (key.with_suffix(".pub"), "no unencrypted private key"),
        (tmp_path / "absent", "cannot be read"),
        (tmp_path, "cannot be read"),
    ):
        with pytest.raises(UsageError, match=message):
            load_private_key(path)
    for path, message in ((curve.with_suffix(".pub"), "another algorithm"), (key, "is no public key")):
        with pytest.raises(UsageError, match=message):
            read_files(signed, key=path)


def test_a_signed_artifact_can_be_replaced_and_is_then_not_signed(signed: Path) -> None:
    write_files(signed, FILES, lambda _: None)
    assert sorted(path.name for path in signed.iterdir()) == sorted([*REQUIRED, MANIFEST])
