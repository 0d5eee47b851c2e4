"""A signature over all files of an output, by the OpenSSF's model-signing package.

The bundle is a DSSE envelope around an in-toto statement with the SHA-256 of every file
(sigstore/model-transparency: src/model_signing). Keys are elliptic-curve keys in PEM; nothing here
talks to a network. The package is heavy, so it is an extra: pip install 'moetool[sign]'.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moetool.errors import DigestMismatch, Refused, UsageFault
from moetool.proof.certificate.issue import SIGNATURE

if TYPE_CHECKING:
    from pathlib import Path


def require(key: Path) -> None:
    """Find out before hours of work whether the key and the package are there.

    Raises:
        UsageFault: one of them is not.
    """
    _package()
    if not key.is_file():
        raise UsageFault("no such key", where=str(key))


def sign_folder(folder: Path, private_key: Path) -> Path:
    """Sign every file of a folder; gives the path of the signature in it.

    Raises:
        UsageFault: the package is not there.
        Refused: the key cannot be used, or the folder cannot be signed.
    """
    signing, hashing, _ = _package()
    path = folder / SIGNATURE
    try:
        config = signing.Config().use_elliptic_key_signer(private_key=private_key)
        config.set_hashing_config(_unsigned(hashing, path)).sign(folder, path)
    except (ValueError, TypeError, OSError) as error:
        raise Refused(
            f"could not be signed: {error}",
            where=str(folder),
            hint="the key must be an unencrypted elliptic-curve private key in PEM",
        ) from error
    return path


def verify_folder(folder: Path, public_key: Path) -> str:
    """Check the signature of a folder; gives a line that says what was shown.

    Raises:
        UsageFault: the package, the key or the signature is not there.
        DigestMismatch: the signature is not of these files, or not by this key.
    """
    require(public_key)
    _, hashing, verifying = _package()
    path = folder / SIGNATURE
    if not path.is_file():
        raise UsageFault(f"there is no {SIGNATURE}", where=str(folder))
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
        config.set_hashing_config(_unsigned(hashing, path)).verify(folder, path)
    except Exception as error:
        raise DigestMismatch(
            f"the signature is not of these files by this key: {error}", where=str(path)
        ) from error
    return f"signed   MATCH  every file, by the key in {public_key.name}"


def _unsigned(hashing: Any, signature: Path) -> Any:  # noqa: ANN401  # a package without types
    return hashing.Config().set_ignored_paths(paths=[signature])


def _package() -> tuple[Any, Any, Any]:
    try:
        from model_signing import hashing, signing, verifying
    except ImportError as error:
        raise UsageFault(
            "signatures need the model-signing package", hint="pip install 'moetool[sign]'"
        ) from error
    return signing, hashing, verifying
