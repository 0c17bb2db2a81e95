"""The folder is the registry."""

from pathlib import Path

import pytest

from infoprune.config import registry
from infoprune.errors import UserError


def test_names_are_the_files() -> None:
    assert {"cifar_resnet", "torchvision"} <= set(registry.names("models"))
    assert {"digits", "cifar10", "image_folder"} <= set(registry.names("datasets"))
    assert {"information_bottleneck", "l1", "l2", "taylor", "random", "batch_norm_scale"} <= set(
        registry.names("analyses")
    )


def test_users_own_file(tmp_path: Path) -> None:
    path = tmp_path / "my_nets.py"
    path.write_text("def net(width=3):\n    return width\n\ndef _hidden():\n    pass\n")
    assert registry.find("models", f"{path}:net")(width=5) == 5
    with pytest.raises(UserError, match="no function or class 'nett'; did you mean 'net'"):
        registry.find("models", f"{path}:nett")


def test_users_own_package() -> None:
    assert registry.find("datasets", "math:sqrt")(4) == 2
    with pytest.raises(UserError, match="no module named 'no_such_module'"):
        registry.find("models", "no_such_module:net")
    with pytest.raises(UserError, match="no file"):
        registry.find("models", "no/such/file.py:net")


def test_unknown_names_are_suggested() -> None:
    with pytest.raises(UserError, match="no analysis 'taylo'; did you mean 'taylor'"):
        registry.find("analyses", "taylo")
