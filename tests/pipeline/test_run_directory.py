"""A run directory: what infoprune wrote is known by its content, and all else is the user's."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infoprune.errors import UserError
from infoprune.pipeline.run_directory import RunDirectory

NAMES = ("plan.json", "report.html", "export/model.onnx", "export/export.json")


def claimed(path: Path, force: bool = False) -> RunDirectory:
    """A run directory that may write `NAMES`."""
    directory = RunDirectory(path)
    directory.claim(NAMES, force)
    return directory


def text(content: str) -> Callable[[Path], int]:
    return lambda path: path.write_text(content)


def exported(directory: RunDirectory, origin: str, *names: str) -> None:
    """An artifact of several files."""
    for name in names:
        directory.write(f"export/{name}", text(f"{name} {origin}"), "export/export.json", origin)
    directory.write("export/export.json", text(origin), origin=origin)


def test_a_new_folder_becomes_a_run_directory(tmp_path: Path) -> None:
    directory = claimed(tmp_path / "a" / "run")
    directory.write("findings/l2.json", text("x"), origin="o")
    assert directory.state("findings/l2.json") == "whole"
    assert directory.is_current("findings/l2.json", "o")
    assert not directory.is_current("findings/l2.json", "other")
    assert list((tmp_path / "a" / "run" / ".infoprune" / "tmp").iterdir()) == []
    again = claimed(tmp_path / "a" / "run")
    assert again.is_current("findings/l2.json", "o")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "one byte": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "a byte more": lambda path: path.write_bytes(path.read_bytes() + b" "),
    "halved": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "removed": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("part", ["model.onnx", "model.py", "export.json"])
def test_a_damaged_part_makes_an_artifact_stale(tmp_path: Path, damage: str, part: str) -> None:
    directory = claimed(tmp_path)
    exported(directory, "o", "model.onnx", "model.py")
    file = tmp_path / "export" / part
    whole = file.read_bytes()
    DAMAGES[damage](file)
    assert not directory.is_current("export/export.json", "o")
    assert directory.changed("export/export.json") == ([] if damage == "removed" else [f"export/{part}"])
    damaged = None if damage == "removed" else file.read_bytes()
    exported(directory, "o", "model.onnx", "model.py")
    assert directory.is_current("export/export.json", "o")
    assert file.read_bytes() == whole
    kept = tmp_path / ".infoprune" / "changed" / f"export.{part}.1"
    assert (kept.read_bytes() if kept.exists() else None) == damaged, "what somebody changed is lost"


def test_changes_are_put_aside_one_by_one(tmp_path: Path) -> None:
    directory = claimed(tmp_path)
    for content in ("first edit", "second edit"):
        directory.write("plan.json", text("{}"))
        (tmp_path / "plan.json").write_text(content)
    directory.write("plan.json", text("{}"))
    aside = tmp_path / ".infoprune" / "changed"
    assert {path.name: path.read_text() for path in aside.iterdir()} == {
        "plan.json.1": "first edit",
        "plan.json.2": "second edit",
    }


def test_parts_of_another_origin_go(tmp_path: Path) -> None:
    directory = claimed(tmp_path)
    exported(directory, "one", "model.onnx", "model.py")
    exported(directory, "two", "model.onnx")
    assert not directory.is_current("export/export.json", "two"), "model.py is of the first"
    directory.retire("export/export.json", "two")
    assert directory.is_current("export/export.json", "two")
    assert {path.name for path in (tmp_path / "export").iterdir()} == {"model.onnx", "export.json"}


def test_a_mix_of_two_origins_is_not_current(tmp_path: Path) -> None:
    """A process killed between two parts, and options that go back to what they were."""
    directory = claimed(tmp_path)
    exported(directory, "one", "model.onnx")
    directory.write("export/model.onnx", text("model.onnx two"), "export/export.json", "two")
    assert not directory.is_current("export/export.json", "one")


def test_killed_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest announces a file that did not get its name: the earlier one is still infoprune's."""
    directory = claimed(tmp_path)
    directory.write("plan.json", text("one"), origin="one")
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        if Path(target).name == "plan.json":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            directory.write("plan.json", text("two"), origin="two")
    again = claimed(tmp_path)
    assert again.state("plan.json") == "previous"
    assert not again.is_current("plan.json", "two")
    again.write("plan.json", text("two"), origin="two")
    assert again.is_current("plan.json", "two")
    assert not (tmp_path / ".infoprune" / "changed").exists(), "it was infoprune's own"


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".bashrc.20240101").write_text("mine")
    with pytest.raises(UserError, match=r"is no run directory and holds other files \(\.bashrc\.20240101\).*--force"):
        claimed(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".bashrc.20240101"}
    claimed(tmp_path, force=True).write("plan.json", text("{}"))
    claimed(tmp_path)  # it is a run directory now
    assert (tmp_path / ".bashrc.20240101").read_text() == "mine"


def clash(path: Path, kind: str, outside: Path) -> None:
    """Something of the user's under a name that infoprune needs."""
    path.parent.mkdir(exist_ok=True, parents=True)
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder":
        path.mkdir()
        (path / "mine.txt").write_text("mine")
    elif kind == "dangling link":
        path.symlink_to(outside / "nothing")
    else:
        path.symlink_to(outside / "file.txt")


@pytest.mark.parametrize("kind", ["file", "folder", "link", "dangling link"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("early", [True, False])
def test_clashes_are_refused(tmp_path: Path, kind: str, name: str, early: bool) -> None:
    outside, run = tmp_path / "outside", tmp_path / "run"
    outside.mkdir()
    (outside / "file.txt").write_text("mine")
    directory = RunDirectory(run)
    if not early:
        directory.claim(NAMES)
    clash(run / name, kind, outside)
    if early:
        with pytest.raises(UserError, match=f"holds {name}, which infoprune did not write but needs the name of"):
            directory.claim(NAMES, force=True)
        assert not (run / ".infoprune").exists(), "nothing is to start"
    else:
        with pytest.raises(UserError, match=f"holds {name}, which infoprune did not write but needs the name of"):
            directory.write(name, text("ours"))
    directory.remove(name)
    assert (outside / "file.txt").read_text() == "mine"
    assert (run / name).is_symlink() == ("link" in kind)
    if kind in ("file", "folder"):
        assert (run / name / "mine.txt" if kind == "folder" else run / name).read_text() == "mine"


def test_no_linked_folder_is_written_through(tmp_path: Path) -> None:
    outside, run = tmp_path / "outside", tmp_path / "run"
    outside.mkdir()
    directory = claimed(run)
    exported(directory, "o", "model.onnx")
    (run / "export").rename(outside / "export")
    (run / "export").symlink_to(outside / "export")
    assert directory.state("export/model.onnx") == "foreign"
    with pytest.raises(UserError, match=r"holds export/model\.onnx, which infoprune did not write"):
        directory.write("export/model.onnx", text("ours"))
    directory.remove("export/model.onnx")
    assert (outside / "export" / "model.onnx").read_text() == "model.onnx o"


@pytest.mark.parametrize("name", [".infoprune", ".infoprune/tmp", ".infoprune/manifest.json", ".infoprune/changed"])
def test_links_in_its_own_folder_are_refused(tmp_path: Path, name: str) -> None:
    outside, run = tmp_path / "outside", tmp_path / "run"
    (outside / "tmp").mkdir(parents=True)
    (outside / "tmp" / "mine.txt").write_text("mine")
    (outside / ".hidden").write_text("mine")
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).symlink_to(outside / "tmp" if name.endswith("tmp") else outside)
    with pytest.raises(UserError, match="is a link; infoprune writes through none"):
        claimed(run, force=True)
    assert (outside / "tmp" / "mine.txt").read_text() == "mine"
    assert (outside / ".hidden").read_text() == "mine"


def test_what_a_killed_process_left_goes(tmp_path: Path) -> None:
    claimed(tmp_path)
    own = tmp_path / ".infoprune"
    (own / "tmp" / "abc").mkdir(parents=True)
    (own / "tmp" / "abc" / "model.onnx").write_text("half")
    (own / "tmp" / "link").symlink_to(tmp_path / "mine")
    (own / ".manifest.json.abcd1234.json").write_text("half")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".plan.json.abcd1234.json").write_text("mine")
    claimed(tmp_path)
    assert {path.name for path in own.iterdir()} == {"lock", "manifest.json"}
    assert (tmp_path / "mine" / ".plan.json.abcd1234.json").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["files"]["plan.json"].update(sha256="0" * 64),
        lambda manifest: manifest["files"].update({"user.txt": manifest["files"]["plan.json"]}),
        lambda manifest: manifest.pop("checksum"),
        lambda manifest: manifest.update(files=[]),
        lambda manifest: manifest.update(format=2),
    ],
)
def test_an_edited_manifest_is_refused(tmp_path: Path, change: Callable[[dict], object]) -> None:
    claimed(tmp_path).write("plan.json", text("{}"))
    path = tmp_path / ".infoprune" / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"was damaged or edited.*choose another folder with --out"):
        claimed(tmp_path)
    assert (tmp_path / "plan.json").read_text() == "{}"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"null"])
def test_a_torn_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    claimed(tmp_path).write("plan.json", text("{}"))
    (tmp_path / ".infoprune" / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=r"manifest\.json.*choose another folder with --out"):
        claimed(tmp_path)


def test_a_lost_manifest_gives_nothing_away(tmp_path: Path) -> None:
    claimed(tmp_path).write("plan.json", text("{}"))
    (tmp_path / ".infoprune" / "manifest.json").unlink()
    for force in (False, True):
        with pytest.raises(UserError, match="has no manifest, so infoprune cannot tell its own files"):
            claimed(tmp_path, force)
    assert (tmp_path / "plan.json").read_text() == "{}"


def test_a_folder_of_the_users_with_its_name(tmp_path: Path) -> None:
    (tmp_path / ".infoprune").mkdir()
    (tmp_path / ".infoprune" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="has no manifest"):
        claimed(tmp_path, force=True)


def test_inputs_are_recognised_through_links(tmp_path: Path) -> None:
    directory = claimed(tmp_path / "run")
    directory.write("finetuned.safetensors", text("w"))
    file = tmp_path / "run" / "finetuned.safetensors"
    (tmp_path / "soft").symlink_to(file)
    os.link(file, tmp_path / "hard")
    (tmp_path / "folder").symlink_to(tmp_path / "run")
    (tmp_path / "copy").write_text("w")
    for path in (file, tmp_path / "soft", tmp_path / "hard", tmp_path / "folder" / "finetuned.safetensors"):
        assert directory.name_of(path) == "finetuned.safetensors", path
    assert directory.name_of(tmp_path / "copy") is None


@pytest.mark.parametrize("path", ["", "file"])
def test_no_folder(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"--out"):
        claimed(path)  # type: ignore[arg-type]
    assert {each.name for each in tmp_path.iterdir()} == {"file"}


ACTS = st.sampled_from(["write", "edit", "remove", "plant", "unlink", "retire", "claim"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.lists(st.tuples(ACTS, st.sampled_from(NAMES), st.sampled_from("ab")), max_size=12))
def test_whatever_happens_foreign_content_survives(
    tmp_path_factory: pytest.TempPathFactory, acts: list[tuple[str, str, str]]
) -> None:
    """After any sequence of writes, edits and plants, each content that a user put there is somewhere, once written."""
    run = tmp_path_factory.mktemp("run") / "r"
    directory, users = claimed(run), 0
    for act, name, origin in acts:
        path = run / name
        try:
            if act == "write":
                directory.write(name, text(f"ours {origin}"), "export/export.json" if "/" in name else "", origin)
            elif act == "remove":
                directory.remove(name)
            elif act == "retire":
                directory.retire("export/export.json", origin)
            elif act == "claim":
                directory = claimed(run)
            elif act == "unlink":
                if path.exists() and "user" not in path.read_text():
                    path.unlink()
            elif act == "plant" or path.exists():
                if path.exists() and "user" in path.read_text():
                    continue
                path.parent.mkdir(exist_ok=True)
                path.write_text(f"user {users}")
                users += 1
        except UserError:
            assert act in ("write", "claim")
    found = {path.read_text() for path in run.rglob("*") if path.is_file() and path.suffix != ".lock"}
    assert {f"user {number}" for number in range(users)} <= found


@pytest.mark.parametrize("inside", [".infoprune", ".infoprune/tmp", ".infoprune/changed/x"])
def test_no_run_lies_in_the_folder_of_another(tmp_path: Path, inside: str) -> None:
    claimed(tmp_path)
    with pytest.raises(UserError, match="that infoprune keeps for itself"):
        claimed(tmp_path / inside, force=True)


def test_hidden_files_in_its_folder_stay(tmp_path: Path) -> None:
    (tmp_path / ".infoprune").mkdir()
    (tmp_path / ".infoprune" / ".notes").write_text("mine")
    with pytest.raises(UserError, match="has no manifest"):
        claimed(tmp_path)
    (tmp_path / ".infoprune" / ".notes").unlink()
    claimed(tmp_path)
    (tmp_path / ".infoprune" / ".notes").write_text("mine")
    claimed(tmp_path)
    assert (tmp_path / ".infoprune" / ".notes").read_text() == "mine"
