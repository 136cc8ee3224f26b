"""What the tests of every kind of source need: an archive, a reading of a source, and the law of its parts."""

import io
import pickle
import tarfile
from pathlib import Path

from coreclip.pipeline.records import Record, Reject, Source
from coreclip.pipeline.sources import find_sources, scan


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """Write an archive of (name, content)."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def read(source, captions=None, class_names=None, template="{}") -> tuple[list[Record], list[Reject]]:
    """Scan what ``source`` names; return the records and the rejects."""
    found = find_sources([source], captions, class_names)
    items = [item for one in found for item in scan(one, class_names, template)]
    return [item for item in items if isinstance(item, Record)], [item for item in items if isinstance(item, Reject)]


def reasons(rejects: list[Reject]) -> dict[str, str]:
    """Return the reason of each key."""
    return {reject.key: reject.reason for reject in rejects}


def assert_parts_make_the_whole(source: Source, counts: tuple[int, ...] = (1, 2, 3, 7, 50)) -> None:
    """Check that the scans of a source's parts, sent to other processes, are in order the scan of the source."""
    whole = list(source.scan())
    for count in counts:
        parts = pickle.loads(pickle.dumps(source.split(count)))
        assert len(parts) == count
        assert [item for part in parts for item in part.scan()] == whole
        assert [item for part in parts[0].split(4) for item in part.scan()] == list(parts[0].scan())
