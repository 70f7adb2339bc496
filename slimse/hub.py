"""What a name of weights stands for: bundled ones, a file, a folder, or a repository on the Hugging Face hub."""

from __future__ import annotations

import importlib.util
import os
import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from .model import SlimModel

DEFAULT = "dynamic-v1"
"""Name of the bundled weights that `load` returns."""
WEIGHTS_FILE = "model.safetensors"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


def find_weights(
    weights: str | os.PathLike[str] = DEFAULT,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Path:
    """The file of weights that a name stands for.

    Args:
        weights: a ``.safetensors`` file; a folder that holds one; the name of bundled weights; or ``OWNER/NAME`` of a
            repository on the hub, with or without ``@REVISION``. A file or folder that exists goes before the hub.
        revision: of a repository: branch, tag or, as a repository may change, best the hash of a commit.
        cache_dir: where files of the hub are kept; None for that of ``huggingface_hub``.
        local_files_only: take a repository from there, without a connection, as ``HF_HUB_OFFLINE=1`` does.

    Raises:
        FileNotFoundError: if there is no such file, bundled name or repository, or not one file in the folder.
        ModuleNotFoundError: if a repository is asked for and ``huggingface_hub`` is missing.
        ValueError: if the hub cannot be reached, or ``revision`` is given for what is no repository.
    """
    known, path, text = bundled(), Path(weights), os.fspath(weights)
    is_repository = text not in known and not path.exists() and _HUB_ID.fullmatch(text) is not None
    if is_repository and path.suffix != ".safetensors":
        name, _, pinned = text.partition("@")
        return _download(name, revision or pinned or None, cache_dir, local_files_only)
    if revision is not None:
        raise ValueError(f"revision = {revision!r}: {text!r} is no repository on the hub: expected OWNER/NAME")
    if isinstance(weights, str) and weights in known:
        return known[weights]
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if len(files) != 1:
            raise FileNotFoundError(f"{path} holds {len(files)} .safetensors files: expected one")
        return files[0]
    if not path.is_file():
        names = f"expected a .safetensors file, OWNER/NAME on the hub, or bundled weights, one of {list(known)}"
        raise FileNotFoundError(f"no weights {text!r}: {names}")
    return path


def bundled() -> dict[str, Path]:
    """Files of the weights that come with the package, by name."""
    folder = Path(str(resources.files("slimse") / "weights"))
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def _download(name: str, revision: str | None, cache_dir: str | os.PathLike[str] | None, local: bool) -> Path:
    check_hub(f"{name!r} is no file: as a repository on the hub it")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    what = name if revision is None else f"{name}@{revision}"
    cache = None if cache_dir is None else Path(cache_dir)
    try:
        found = hf_hub_download(name, WEIGHTS_FILE, revision=revision, cache_dir=cache, local_files_only=local)
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise FileNotFoundError(
            f"{what}: no such file or folder, and no copy of a repository of that name in the cache of the hub, which "
            "cannot be reached or is not to be asked"
        ) from error
    except HfHubHTTPError as error:
        raise FileNotFoundError(f"{what}: not found on the hub: {str(error).strip().splitlines()[0]}") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{what}: the hub cannot be used: {str(error).strip().splitlines()[0]}") from error
    return Path(found)


def check_hub(what: str) -> None:
    """Make sure that ``huggingface_hub`` can be imported.

    Raises:
        ModuleNotFoundError: if not; the message says what to install.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ModuleNotFoundError(f"{what} needs huggingface_hub: pip install 'slimse[hub]'", name="huggingface_hub")


class Pretrained:
    """Methods of a model that has weights to load and share: the package's functions of these names.

    They are imported when called, as they stand above the model and import it.
    """

    @staticmethod
    def from_pretrained(weights: str | os.PathLike[str] = DEFAULT, **options: Any) -> SlimModel:
        """Load a model: `slimse.load`."""
        from . import load

        return load(weights, **options)

    def save_pretrained(self, folder: str | os.PathLike[str], **options: Any) -> None:
        """Write a folder that `from_pretrained` takes: `slimse.save_pretrained`."""
        from . import save_pretrained

        save_pretrained(cast("SlimModel", self), folder, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload to the Hugging Face hub: `slimse.push_to_hub`."""
        from . import push_to_hub

        return push_to_hub(cast("SlimModel", self), repo_id, **options)
