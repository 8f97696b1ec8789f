"""Finds a model's files: the embedded model, a folder, or a hub id that is fetched. No torch here."""

from __future__ import annotations

import re
from pathlib import Path

from stoker.config import EMBEDDED_MODEL
from stoker.demo_model import CHECKPOINT
from stoker.model_config import read_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_FETCHED = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model"]


def resolve(model: str, revision: str | None = None, download_dir: str | None = None) -> Path:
    """The checkpoint's folder on this machine. ValueError that says what was tried and what is allowed."""
    if model == EMBEDDED_MODEL:
        return CHECKPOINT
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(
                f"{path} is no checkpoint: it holds no config.json (and *.safetensors beside it)"
            )
        return path
    if path.is_file():
        raise ValueError(f"{path} is a file; a checkpoint is a folder with config.json and *.safetensors")
    if not _HUB_ID.fullmatch(model):
        raise ValueError(
            f"model {model!r}: no such folder; allowed are a checkpoint folder, a hub id (owner/name) "
            f"or {EMBEDDED_MODEL!r}"
        )
    return _fetch(model, revision, download_dir)


def _fetch(model: str, revision: str | None, download_dir: str | None) -> Path:
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                model, revision=revision, cache_dir=download_dir, allow_patterns=_FETCHED
            )
        )
    except Exception as error:  # whatever the network or the hub client raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"model {model!r}: no such folder, and it could not be fetched from the hub ({reason}); "
            f"allowed are a checkpoint folder, a hub id or {EMBEDDED_MODEL!r}"
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint: those that the index names, or the single one, or whatever is
    there.
    """
    index = folder / INDEX_FILE
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{index}: 'weight_map' must be an object of tensor names and file names")
        names = sorted({str(v) for v in weight_map.values()})
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise ValueError(f"{index}: {name!r} is no name of a safetensors file in the folder")
            if not (folder / name).is_file():
                raise ValueError(f"{folder / name}: no such file, though {INDEX_FILE} names it")
        return [folder / name for name in names]
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        others = sorted(p.name for p in folder.glob("*.bin"))
        hint = f" ({others[0]} is a pickle, which is never read)" if others else ""
        raise ValueError(
            f"{folder}: no *.safetensors file{hint}; allowed are {SINGLE_FILE} or {INDEX_FILE} with its files"
        )
    return files
