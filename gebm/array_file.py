"""Named arrays of an uncompressed `.npz`, read without pickle."""

import zipfile
from typing import BinaryIO

import numpy as np

__all__ = ["read_arrays"]


def read_arrays(file: BinaryIO) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file, in no more memory than the file has bytes.

    Args:
        file: open at its beginning.

    Returns:
        Arrays by name.

    Raises:
        ValueError: whatever is wrong with the file, and for arrays that are compressed, which the writers of this
            package never are: a small file could fill the memory.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("its arrays are compressed; write them with numpy.savez")
        file.seek(0)
        with np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except Exception as error:  # whatever zipfile, zlib and NumPy make of it
        raise ValueError(f"{type(error).__name__}: {error}") from error
