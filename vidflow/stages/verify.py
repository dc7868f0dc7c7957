"""Compare every file below a root with what is recorded of it, and remove what is broken.

Nothing is changed while a root is looked at, and no lock is taken, so this may run beside another command. What looks
broken is looked at twice, because that command may be replacing it.
"""

import errno
import os
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vidflow.counts import Count, uncounted
from vidflow.objects import is_mirror
from vidflow.stages.findings import Finding, Verified
from vidflow.stages.garbage import is_behind_link, remove_files
from vidflow.stages.listings import CHANGED, Claim, Listed, OtherVersionError, WrongFolderError, read_list
from vidflow.stages.root_files import RootFiles, foreign_owner
from vidflow.store.layout import exclusive, fresh, sha256_of

_OWN_FOLDERS = ("plans", "evaluations")
"""Folders whose files are each complete on their own, so that no file marks the folder as finished."""
_FOLDER = "a folder is in its place"
_MOST_THREADS = 16


class RootCheck:
    """One look at a root."""

    def __init__(self, root: Path, check_weights: Callable[[Path], str]) -> None:
        """List the files and read every JSON file that lists others.

        Args:
            root: The root.
            check_weights: Returns what is wrong with the weights of a trial that no list names; empty if nothing is.

        Raises:
            OSError: If a folder cannot be read.
        """
        self._files, self._check_weights = RootFiles(root), check_weights
        # Requests to an object store wait, and need no processor.
        self._num_threads = _MOST_THREADS if is_mirror(root) else min(_MOST_THREADS, 2 * (os.cpu_count() or 1))
        self._paths = self._files.roles.keys()
        self._lists = [path for path, role in self._files.roles.items() if role == "list"]
        self._folders = {folder.directory: folder for folder in self._files.folders()}
        self._claims: dict[Path, list[Claim]] = {}
        self._sealed: set[Path] = set()
        """JSON files that can be trusted."""
        self._users: dict[Path, str] = {}
        """Folders that finished features were made from, and which these are."""
        self._faults: list[Finding] = []
        with ThreadPoolExecutor(self._num_threads) as pool:
            for path, listed in zip(self._lists, pool.map(read_list, self._lists), strict=True):
                self._take(path, listed)
        weights = {path for path, role in self._files.roles.items() if role == "weights"}
        self._checked = sorted(self._claims.keys() | weights)

    @property
    def num_bytes(self) -> int:
        """Bytes of the files to read."""
        return sum(self._size(path) for path in self._checked)

    def _size(self, path: Path) -> int:
        state = self._files.states.get(path)
        return 0 if state is None else state.num_bytes

    def run(self, count: Count = uncounted, only: Collection[Path] | None = None) -> Verified:
        """Compare the files.

        Args:
            count: Called with the bytes of each file that is done.
            only: The files to compare with their digests; None is all of them.
        """
        chosen = self._checked if only is None else sorted(set(self._checked) & set(only))

        def check(path: Path) -> Iterator[Finding]:
            yield from self._check(path)
            count(self._size(path))

        with ThreadPoolExecutor(self._num_threads) as pool:
            findings = [finding for found in pool.map(lambda path: list(check(path)), chosen) for finding in found]
        findings = [*self._faults, *findings, *map(_in_its_place, self._files.misplaced_folders())]
        broken = set(self.closure(path for finding in findings for path in (finding.path, *finding.removes)))
        findings += [*self._folder_findings(broken), *self._file_findings(broken)]
        unsure = broken | set(self._lists)
        sized = {path for path, claims in self._claims.items() if not any(claim.digests for claim in claims)} - unsure
        return Verified(
            root=self._files.root,
            num_files=len(self._lists) + len(chosen) - len(sized) - len(set(self._lists) & set(chosen)),
            num_bytes=sum(self._size(path) for path in chosen),
            num_sized=len(sized),
            findings=sorted(dict.fromkeys(findings), key=lambda each: each.path),
            unchecked=self._count_unchecked(),
        )

    def _take(self, path: Path, listed: Listed | Exception) -> None:
        """Take in what a JSON file says, or that it says nothing that can be trusted."""
        match listed:
            case Listed():
                self._sealed.add(path)
                for claim in listed.claims:
                    if not is_behind_link(self._files.root, claim.path):
                        self._claims.setdefault(claim.path, []).append(claim)
                self._users |= {self._files.root / place: f"features {path.parent.name}" for place in listed.made_from}
            case OtherVersionError():
                problem = f"{listed}, so it counts as missing"
                self._faults.append(Finding(level="unfinished", path=path, problem=problem))
            case WrongFolderError():
                rest = [file for file in self._folders[path.parent].files if file != path]
                self._faults.append(Finding(level="broken", path=path, problem=str(listed), removes=(path, *rest)))
            case OSError():
                self._faults.append(_unreadable(path, listed))
            case _:
                self._faults.append(Finding(level="broken", path=path, problem=str(listed), removes=(path,)))

    def _check(self, path: Path) -> Iterator[Finding]:
        """Compare one file with everything that is said of it."""
        claims = self._claims.get(path, [])
        if (problem := self._misplaced(path)) is not None:
            yield Finding(level="broken", path=path, problem=problem, removes=(path,))
            return
        try:
            if not claims:
                with fresh(path) as local:
                    problem = self._check_weights(local)
                if problem:
                    yield Finding(level="broken", path=path, problem=problem, removes=(path,))
                return
            digest = sha256_of(path) if any(claim.digests for claim in claims) else None
        except OSError as error:
            yield _unreadable(path, error)
            return
        size = self._size(path)
        wrong = [claim for claim in claims if not _holds(claim, size, digest)]
        if not wrong:
            return
        if any(claim.is_own for claim in claims if claim not in wrong) or path in self._sealed:
            # Its own manifest or seal says that it is whole, so it was made again, and the others are out of date.
            problem = f"out of date: {path.name} was made again since"
            yield from (Finding(level="broken", path=by, problem=problem, removes=(by,)) for by in _by(wrong))
        else:
            yield Finding(level="broken", path=path, problem=_describe(wrong[0], size), removes=(path,))

    def _misplaced(self, path: Path) -> str | None:
        """Return why there is no regular file at a place; None if there is one."""
        if path.is_symlink():
            return "a link, which vidflow never makes"
        if path in self._paths:
            return None
        return _FOLDER if path.is_dir() else "gone"

    def _folder_findings(self, broken: Collection[Path]) -> Iterator[Finding]:
        """Yield what concerns whole folders: those that are not finished, and those that others were made from."""
        for directory, folder in self._folders.items():
            if folder.stage in _OWN_FOLDERS or folder.top in self._sealed or folder.top in broken:
                continue
            if folder.top not in self._paths:
                problem = f"no {folder.top.name}, {len(folder.files)} other files"
                half = (
                    f": half deleted, as {self._users[directory]} was made from it" if directory in self._users else ""
                )
                yield Finding(level="unfinished", path=directory, problem=f"{problem}{half}")
        for directory, user in self._users.items():
            if directory not in self._folders and not directory.is_symlink():
                yield Finding(level="unfinished", path=directory, problem=f"gone, but {user} was made from it")

    def _file_findings(self, broken: Collection[Path]) -> Iterator[Finding]:
        """Yield the files that nothing speaks for."""
        for path, role in self._files.roles.items():
            match role:
                case "leftover":
                    yield Finding(
                        level="leftover", path=path, problem="left by a killed or failed writer", removes=(path,)
                    )
                case "unknown":
                    if not path.is_dir():  # a link to a folder
                        yield Finding(level="unknown", path=path, problem="not made by vidflow")
                case "made" if path not in self._claims and path not in broken:
                    yield from self._unclaimed(path)
                case "list" if self._is_alone(path) and path not in broken:
                    yield Finding(level="leftover", path=path, problem="what it describes is gone", removes=(path,))
                case _:
                    pass

    def _unclaimed(self, path: Path) -> Iterator[Finding]:
        folder = self._folders.get(path.parent)
        if folder is None:  # the index
            yield Finding(
                level="broken", path=path, problem=f"no digest beside it in {path.name}.json", removes=(path,)
            )
        elif folder.top in self._sealed:
            yield Finding(level="leftover", path=path, problem="no manifest lists it", removes=(path,))
        elif folder.stage in _OWN_FOLDERS:
            yield Finding(level="unfinished", path=path, problem="no manifest lists it")

    def _is_alone(self, path: Path) -> bool:
        """Whether an entry or digest file describes a file of a finished stage that no longer belongs to it."""
        folder = self._folders.get(path.parent)
        own = [claim for claim in self._claims.get(Path(str(path).removesuffix(".json")), ()) if claim.by == path]
        return folder is not None and folder.top in self._sealed and bool(own) and path not in self._claims

    def _count_unchecked(self) -> dict[str, int]:
        root = self._files.root
        owners = (foreign_owner(path.relative_to(root).parts) for path in self._files.files)
        reasons = Counter(owner for owner in owners if owner is not None)
        for link in self._files.links():
            reasons[f"behind the link {link.relative_to(root)}, which is not followed"] += 1
        return dict(reasons)

    def closure(self, paths: Iterable[Path]) -> tuple[Path, ...]:
        """Return the files to remove together: each with its own manifest, and all manifests that list one of them."""
        found: dict[Path, None] = {}
        waiting = deque(paths)
        while waiting:
            path = waiting.popleft()
            if path in found:
                continue
            found[path] = None
            folder = self._folders.get(path.parent)
            if folder is not None and folder.stage == "heads":  # half a folder would be taken for a whole one
                waiting += folder.files
            beside = [Path(f"{path}.json"), Path(str(path).removesuffix(".json"))]
            waiting += [each for each in beside if each in self._paths]
            waiting += _by(self._claims.get(path, ()))
        return tuple(found)


def verify_root(
    root: Path, check_weights: Callable[[Path], str], *, start: Callable[[int], Count] = lambda _: uncounted
) -> Verified:
    """Compare every file below a root with what is recorded of it.

    Args:
        root: The root.
        check_weights: As for `RootCheck`.
        start: Called with the number of bytes to read; returns what to call as they are read.

    Raises:
        OSError: If a folder cannot be read.
    """
    look = RootCheck(root, check_weights)
    first = look.run(start(look.num_bytes))
    if not first.broken:
        return first
    again = RootCheck(root, check_weights)
    only = {path for finding in first.broken for path in (finding.path, *again.closure([finding.path]))}
    second = set(again.run(only=only).broken)
    return Verified(
        root=root,
        num_files=first.num_files,
        num_bytes=first.num_bytes,
        num_sized=first.num_sized,
        findings=[_with_closure(each, again) for each in first.findings if each.level != "broken" or each in second],
        unchecked=first.unchecked,
    )


def repair(verified: Verified, check_weights: Callable[[Path], str]) -> Iterator[Path]:
    """Delete what is broken or left over, with the manifests that list it, and yield each file that is deleted.

    The root is locked and looked at once more, as it may have changed.

    Raises:
        VidflowError: If another command holds the root.
    """
    with exclusive(verified.root):
        look = RootCheck(verified.root, check_weights)
        suspects = {path for each in verified.findings for path in (each.path, *each.removes)}
        found = look.run(only=suspects).findings
        damaged = [path for each in found if each.level in ("broken", "leftover") for path in each.removes]
        # All that is damaged first: without its manifest, a damaged file of the right size could be taken for whole.
        yield from remove_files(verified.root, dict.fromkeys([*damaged, *look.closure(damaged)]))


def _with_closure(finding: Finding, look: RootCheck) -> Finding:
    if not finding.removes:
        return finding
    return Finding(
        level=finding.level, path=finding.path, problem=finding.problem, removes=look.closure(finding.removes)
    )


def _in_its_place(folder: Path) -> Finding:
    return Finding(level="broken", path=folder, problem=_FOLDER, removes=(folder,))


def _unreadable(path: Path, error: OSError) -> Finding:
    removes = (path,) if error.errno == errno.EIO else ()  # without a permission, the file itself may be whole
    problem = f"cannot be read ({error.strerror or error})"
    return Finding(level="broken", path=path, problem=problem, removes=removes)


def _holds(claim: Claim, size: int, digest: str | None) -> bool:
    return claim.num_bytes in (None, size) and (not claim.digests or digest in claim.digests)


def _by(claims: Iterable[Claim]) -> list[Path]:
    return list(dict.fromkeys(claim.by for claim in claims))


def _describe(claim: Claim, size: int) -> str:
    if claim.num_bytes not in (None, size):
        return f"{size} bytes, wanted {claim.num_bytes}"
    return CHANGED


__all__ = ["repair", "verify_root"]
