import importlib
from pathlib import Path


def download(repository: str, file: str, *, revision: str) -> Path:
    """Download one file of a model repository on the Hugging Face hub. Nothing else in this library uses the network.

    Files are kept in the cache of `huggingface_hub` and downloaded once.

    **Arguments:**

    - `repository`: the repository, `"owner/name"`.
    - `file`: the path of the file in it.
    - `revision`: the full hash of a commit, so that the file cannot change; the names of branches and tags are accepted
        too, but what they refer to can change.

    **Returns:** the path of the file on disk, for [`lo_components.weights.read_arrays`][].

    Raises `ImportError` if huggingface_hub is not installed, and its errors if the file cannot be had.
    """
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        raise ImportError("`download` needs huggingface_hub: `pip install lo-components[hub]`.") from None
    return Path(hub.hf_hub_download(repo_id=repository, filename=file, revision=revision))
