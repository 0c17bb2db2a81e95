"""A training's state between epochs in one file, so that a killed process loses at most the epoch it was in."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from infoprune import distributed, store
from infoprune.encoding import to_json
from infoprune.errors import UserError
from infoprune.training.epochs import kept_weights

KEY = "training"


class EpochFile:
    """Keeps the state after the last whole epoch; what `finetune` takes as `resume`.

    The file is replaced by renaming, so that it is always whole, and holds tensors and JSON only.

    Args:
        path: where to, `*.safetensors`.
        made_from: what else, beside the options of the training, must be equal for it to be gone on from: data,
            model, versions.
    """

    def __init__(self, path: Path | str, made_from: Mapping[str, Any] | None = None) -> None:
        self.path, self.made_from = Path(path), to_json(made_from or {})

    def load(self, made_by: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The state saved by a training with equal options; `None` where there is none, or one from something else.

        Raises:
            UserError: for a damaged file.
        """
        if not self.path.exists():
            return None
        try:
            header = json.loads(store.read_metadata(self.path)[KEY])
        except (KeyError, json.JSONDecodeError) as error:
            raise UserError(f"'{self.path}' holds no state of a training; remove it to start anew") from error
        if header["made_from"] != self._origin(made_by):
            return None
        return store.read_tensors(self.path), header["notes"]

    def save(self, made_by: Mapping[str, Any], tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Replaces what was saved before."""
        header = {"made_from": self._origin(made_by), "notes": notes}
        store.write_tensors(self.path, tensors, {KEY: json.dumps(header)})

    def weights(self, which: Literal["best", "last"]) -> dict[str, Tensor]:
        """The weights that training kept of the best epoch or the last; empty where no epoch was saved."""
        return kept_weights(which, store.read_tensors(self.path)) if self.path.exists() else {}

    def clear(self) -> None:
        """Removes the file, and what a process that was killed while it wrote has left beside it; the first's task."""
        if not distributed.is_first():
            return
        self.path.unlink(missing_ok=True)
        for torn in self.path.parent.glob(f".{self.path.name}.*{self.path.suffix}"):
            torn.unlink(missing_ok=True)

    def _origin(self, made_by: Mapping[str, Any]) -> Any:
        return json.loads(json.dumps({"options": to_json(dict(made_by)), "inputs": self.made_from}))
