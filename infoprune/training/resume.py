"""A training's state between epochs in one file, so that a killed process loses at most the epoch it was in."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from infoprune.errors import UserError
from infoprune.io import storage
from infoprune.io.encoding import to_json
from infoprune.training.trainer import kept_weights
from infoprune.utils import distributed

KEY = "training"
LOGGER = logging.getLogger(__name__)


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
        """The state saved by a training with equal options.

        `None` where there is none, where it came from something else, and, with a warning, where the file is damaged.
        """
        if not self.path.exists():
            return None
        try:
            header = self._header()
            if header.get("made_from") != self._origin(made_by):
                return None
            notes = header.get("notes")
            if not isinstance(notes, dict):
                raise UserError(f"'{self.path}' holds no notes of a training")
            tensors = storage.read_tensors(self.path)
            if header.get("checksum") != _checksum(tensors, notes):
                raise UserError(f"'{self.path}' changed after it was written")
            return tensors, notes
        except UserError as error:
            LOGGER.warning("%s; training starts from the beginning", error)
            return None

    def _header(self) -> dict[str, Any]:
        """What the file says of itself.

        Raises:
            UserError: where it is damaged, or of another kind.
        """
        try:
            header = json.loads(storage.read_metadata(self.path).get(KEY, "null"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"'{self.path}' holds no state of a training: {error}") from error
        if not isinstance(header, dict):
            raise UserError(f"'{self.path}' holds no state of a training")
        return header

    def save(self, made_by: Mapping[str, Any], tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Replaces what was saved before."""
        header = {"made_from": self._origin(made_by), "notes": notes, "checksum": _checksum(tensors, notes)}
        storage.write_tensors(self.path, tensors, {KEY: json.dumps(header)})

    def weights(self, which: Literal["best", "last"]) -> dict[str, Tensor]:
        """The weights that training kept of the best epoch or the last; empty where no epoch was saved."""
        if not self.path.exists():
            return {}
        try:
            origin = self._header().get("made_from")
            # A training of no epochs leaves the file as it was, which may be another one's, or damaged.
            own = isinstance(origin, dict) and origin.get("inputs") == self.made_from
            return kept_weights(which, storage.read_tensors(self.path)) if own else {}
        except UserError as error:
            LOGGER.warning("%s; the weights of the %s epoch are not kept", error, which)
            return {}

    def clear(self) -> None:
        """Removes the file, and what a process that was killed while it wrote has left beside it; the first's task."""
        if not distributed.is_first():
            return
        self.path.unlink(missing_ok=True)
        for torn in self.path.parent.glob(f".{self.path.name}.*{self.path.suffix}"):
            torn.unlink(missing_ok=True)

    def _origin(self, made_by: Mapping[str, Any]) -> Any:
        return json.loads(json.dumps({"options": to_json(dict(made_by)), "inputs": self.made_from}))


def _checksum(tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> str:
    """By which damage that leaves a valid file is found; notes as they come back from JSON."""
    return storage.value_fingerprint([storage.tensors_fingerprint(tensors), json.loads(json.dumps(notes))])
