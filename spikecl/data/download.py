"""Fetch the official files of a data set into the user's cache, verified or not at all."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikecl.data import event_file, npz
from spikecl.data.arrays import checked
from spikecl.data.checks import Array
from spikecl.data.entry import Entry
from spikecl.errors import DataError

if TYPE_CHECKING:
    from rich.progress import Progress

TIMEOUT_S = 30
CHUNK_BYTES = 1 << 16


def download(
    entry: Entry, folder: Path, *, base_url: str | None = None, progress: bool = True
) -> Path:
    """Download, decode and verify a data set, then save it as one ``.npz``.

    The transfers go to a temporary folder inside ``folder`` that disappears whatever happens; the
    ``.npz`` appears only when every array is decoded and the checksum agrees.

    Args:
        entry: The data set.
        folder: Where the ``.npz`` goes; made when missing.
        base_url: Another folder with the same files, such as a mirror.
        progress: Whether a bar is drawn on standard error, when that is a terminal.

    Returns:
        The path of the ``.npz``.

    Raises:
        DataError: No network, a broken transfer, a full disk, content that is not the data set, or
            a data set that has to be converted by hand.
    """
    if entry.decode is None:
        raise DataError(
            f"{entry.name} is not downloaded: {entry.conversion}; {_by_hand(entry, folder)}"
        )
    target = folder / entry.full.file
    with _explained(entry, folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as temporary:
            files = _transfer(entry, entry.urls(base_url), Path(temporary), progress)
            arrays = entry.decode(files)
    where = f"download of {entry.name} from {base_url or entry.base_url}"
    difference = _difference(entry, arrays, where)
    if difference:
        raise DataError(
            f"{where}: {difference}; nothing was kept; try again later, or "
            f"{_by_hand(entry, folder)}"
        )
    npz.save(target, arrays)
    return target


def _difference(entry: Entry, arrays: dict[str, Array], where: str) -> str:
    """Say how arrays differ from the data set; where no checksum is known, only sizes can tell."""
    if entry.events:
        checksum, shape = event_file.checksum_of(arrays), entry.shape
    else:
        data = checked(arrays, entry.name, where=where)
        checksum, shape = data.checksum, data.input_shape
    if entry.full.checksum is not None:
        same = checksum == entry.full.checksum
        return "" if same else f"checksum {checksum}, expected {entry.full.checksum}"
    got = (len(arrays["y_train"]), len(arrays["y_test"]), shape)
    expected = (entry.train, entry.test, entry.shape)
    return "" if got == expected else f"train, test, shape {got}, expected {expected}"


def _transfer(entry: Entry, urls: dict[str, str], folder: Path, progress: bool) -> dict[str, Path]:
    import pooch

    files: dict[str, Path] = {}
    with _bars(progress) as bars:
        for what, url in urls.items():
            files[what] = folder / what / url.rsplit("/", 1)[-1]
            files[what].parent.mkdir()
            transfer = pooch.HTTPDownloader(
                progressbar=_Bar(bars, f"{entry.name}, {what}"),
                chunk_size=CHUNK_BYTES,
                timeout=TIMEOUT_S,
            )
            transfer(url, str(files[what]), None)
            if what in entry.md5:
                _refuse_altered(files[what], entry.md5[what], url)
    return files


def _refuse_altered(file: Path, expected: str, url: str) -> None:
    import pooch

    got = pooch.file_hash(str(file), alg="md5")
    if got != expected:
        raise DataError(f"{url} has md5 {got}, but {expected} is published; try again later")


@contextlib.contextmanager
def _bars(visible: bool) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        disable=not (visible and console.is_terminal),
        transient=True,
    ) as bars:
        yield bars


class _Bar:
    """What pooch asks of a progress bar, drawn by rich."""

    def __init__(self, bars: Progress, title: str) -> None:
        self._bars = bars
        self._task = bars.add_task(title, total=None)

    @property
    def total(self) -> float | None:
        return self._bars.tasks[self._task].total

    @total.setter
    def total(self, value: int) -> None:
        self._bars.update(self._task, total=value or None)

    def update(self, count: int) -> None:
        self._bars.advance(self._task, count)

    def reset(self) -> None:
        self._bars.reset(self._task)

    def close(self) -> None:
        self._bars.stop_task(self._task)


@contextlib.contextmanager
def _explained(entry: Entry, folder: Path) -> Iterator[None]:
    """Turn network, disk and decoding errors into one line; requests' errors are OSErrors."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise DataError(
                f"cannot write into {folder}: {error.strerror}; free space or make the folder "
                "writable; nothing half-written was left"
            ) from None
        raise DataError(
            f"cannot download {entry.name} ({_reason(error)}); {_by_hand(entry, folder)}"
        ) from None
    except DataError as error:
        raise DataError(f"{error}, or {_by_hand(entry, folder)}") from None


def _reason(error: Any) -> str:
    response = getattr(error, "response", None)
    if response is not None:
        return f"HTTP {response.status_code} from {response.url}"
    request = getattr(error, "request", None)
    place = f" from {request.url}" if request is not None else ""
    return f"{type(error).__name__}{place}"


def _by_hand(entry: Entry, folder: Path) -> str:
    others = "a folder that --data-dir or SPIKECL_DATA names"
    return f"put {entry.full.file} into {folder} or into {others}"
