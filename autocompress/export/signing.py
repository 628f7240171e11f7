"""Signatures of artifacts: Ed25519 over manifest.json, which holds the SHA-256 of every other file.

Keys are PEM files, and a signature is the 64 bytes of RFC 8032, so that openssl makes and checks them too.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from autocompress.core.atomic import write_atomic
from autocompress.core.untrusted import read_regular_file
from autocompress.errors import ArtifactError, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNED, SIGNATURE = "manifest.json", "manifest.sig"
SIGNATURE_BYTES = 64
# Far above the size of a key.
LARGEST_KEY = 2**14
_MISSING = "signatures need cryptography: pip install 'autocompress[sign]'"
_MAKE_KEYS = "make one with: openssl genpkey -algorithm ed25519 -out KEY; openssl pkey -in KEY -pubout -out KEY.pub"


def load_private_key(path: Path) -> "Ed25519PrivateKey":
    """Return the private key of a PEM file.

    Raises:
        UsageError: The extra ``sign`` is not installed, or the file is no unencrypted Ed25519 key.
    """
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError as error:
        raise UsageError(_MISSING) from error
    try:
        key = load_pem_private_key(_read_key(path), password=None)
    # An encrypted key is a TypeError.
    except (TypeError, ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{path} is no unencrypted private key; {_MAKE_KEYS}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path} is a private key of another algorithm; {_MAKE_KEYS}")
    return key


def sign_artifact(folder: Path, key: "Ed25519PrivateKey") -> Path:
    """Write the signature of an artifact's manifest, and return its path.

    Raises:
        StorageError: The folder cannot be written.
    """
    write_atomic(folder / SIGNATURE, key.sign(read_regular_file(folder / SIGNED)))
    return folder / SIGNATURE


def check_signature(folder: Path, manifest: bytes, key: Path) -> None:
    """Check that the owner of a key signed the manifest of an artifact.

    Args:
        folder: The artifact.
        manifest: Content of its manifest, as it will be used.
        key: PEM file of the public key.

    Raises:
        UsageError: The extra ``sign`` is not installed, or the file is no Ed25519 key.
        ArtifactError: There is no signature, or it belongs to another key or manifest.
    """
    try:
        from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError as error:
        raise UsageError(_MISSING) from error
    try:
        public = load_pem_public_key(_read_key(key))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{key} is no public key; {_MAKE_KEYS}") from error
    if not isinstance(public, Ed25519PublicKey):
        raise UsageError(f"{key} is a public key of another algorithm; {_MAKE_KEYS}")
    try:
        public.verify(read_regular_file(folder / SIGNATURE, SIGNATURE_BYTES), manifest)
    except OSError as error:
        raise ArtifactError(f"{folder} is not signed: {SIGNATURE} cannot be read ({error.strerror})") from error
    except InvalidSignature as error:
        raise ArtifactError(f"{folder} is not signed by {key}: the key or the manifest is another one") from error


def _read_key(path: Path) -> bytes:
    try:
        # Resolved, because a key is a file of the user and may be a link.
        return read_regular_file(path.resolve(), LARGEST_KEY)
    except OSError as error:
        raise UsageError(f"the key {path} cannot be read ({error.strerror})") from error
