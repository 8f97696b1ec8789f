"""How a checkpoint makes embeddings: what sentence-transformers' files in its folder say."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Pooling:
    """The last token's hidden row (after the final norm) stands for the text; `normalize` makes its length 1."""

    normalize: bool = True
    refusal: str = ""
    """Why the checkpoint's own pooling cannot be served; empty: it can."""

    @classmethod
    def from_folder(cls, folder: str | Path, setting: str = "auto") -> Pooling | None:
        """From modules.json and 1_Pooling/config.json. None: the checkpoint is no embedding model, or `setting` is "off".

        `setting` "last" takes any checkpoint, with the last token's row, normalized.
        """
        if setting == "off":
            return None
        if setting == "last":
            return cls()
        path = Path(folder) / "1_Pooling" / "config.json"
        if not path.is_file():
            return None
        config = _read(path)
        modes = [
            name.removeprefix("pooling_mode_")
            for name, on in config.items()
            if name.startswith("pooling_mode_") and on is True
        ]
        mode = str(config.get("pooling_mode") or "")
        modes = modes or ([mode] if mode else [])
        modules = _read(Path(folder) / "modules.json")
        normalize = any("Normalize" in str(one.get("type", "")) for one in modules if isinstance(one, dict))
        if modes != ["lasttoken"]:
            return cls(
                normalize, f"this model pools by {', '.join(modes) or 'nothing'}; only lasttoken is served"
            )
        return cls(normalize)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
