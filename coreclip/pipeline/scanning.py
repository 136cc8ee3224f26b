"""The first pass over one source or part of one: its candidates to a part of the manifest, its rejects to another file."""

from pathlib import Path

from coreclip.pipeline.ledger import write_rejects
from coreclip.pipeline.manifest import ManifestWriter, Plan
from coreclip.pipeline.records import Reject, Source
from coreclip.pipeline.sources import scan
from coreclip.progress import Progress


def scan_part(
    source: Source,
    class_names: list[str] | None,
    template: str,
    manifest: Path,
    rejects: Path,
    *,
    progress: Progress | None = None,
) -> Plan:
    """List a source's candidates in the file ``manifest`` and what is refused in ``rejects``; return the counts."""
    refused = []
    with ManifestWriter(manifest) as writer:
        for item in scan(source, class_names, template):
            if isinstance(item, Reject):
                refused.append(item)
            else:
                writer.add(item)
            if progress is not None:
                progress.advance()
    write_rejects(rejects, refused)
    return writer.plan
