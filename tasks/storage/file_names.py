"""Names of an artifact's files: plain relative paths that stay in their folder and clash on no machine."""

import unicodedata
from collections.abc import Collection
from pathlib import Path, PurePosixPath, PureWindowsPath

from tasks.errors import InputError


def is_safe_name(name: str) -> bool:
    """Whether `name` is a plain relative path that stays in the folder it is joined to, here and on Windows."""
    path = PurePosixPath(name)
    plain = name == str(path) and "\\" not in name and name.isprintable() and not PureWindowsPath(name).drive
    return plain and not path.is_absolute() and name != "." and ".." not in path.parts


def fault_of_names(names: Collection[str]) -> str | None:
    """What is wrong with the names of the files of one folder; None if nothing is."""
    for name in names:
        if not is_safe_name(name):
            return f"the file name {name!r} leaves the artifact's folder or is not plain"
    taken: dict[str, str] = {}
    for name in names:
        other = taken.setdefault(_folded(name), name)
        if other != name:
            return f"the file names {other!r} and {name!r} are the same where case or Unicode form do not count"
    for name in names:
        for parent in PurePosixPath(name).parents:
            if _folded(str(parent)) in taken:
                return f"{taken[_folded(str(parent))]!r} is a file and also the folder of {name!r}"
    return None


def require_publishable(folder: Path, names: Collection[str]) -> None:
    """Raise InputError if the files of `folder` could not be fetched as they are, or one lies outside by a link."""
    if fault := fault_of_names(names):
        raise InputError(f"{folder} cannot be published: {fault}. Rename or remove it.")
    root = folder.resolve()
    for name in names:
        place = (folder / name).resolve()
        if not place.is_relative_to(root):
            raise InputError(
                f"{folder / name} cannot be published: by a link it is {place}, outside its folder. Copy the file."
            )


def refuse_links(folder: Path) -> None:
    """Raise InputError if `folder`, where files are to be written, is or holds a symbolic link, leading elsewhere."""
    for path in (folder, *folder.rglob("*")):
        if path.is_symlink():
            raise InputError(
                f"{path} is a symbolic link, and none of ours: what is written there would go to {path.resolve()}. "
                "Look who may write to the folder, remove the link, and run again."
            )


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
