"""Where the files of a conversion under way lie."""

from dataclasses import dataclass
from pathlib import Path

from coreclip.pipeline.manifest import Plan


@dataclass(frozen=True, slots=True)
class Staging:
    """Names of the files of a conversion under way: the data set's own in ``path``, the others below ``work``."""

    path: Path

    @property
    def work(self) -> Path:
        """Folder of what is removed before the data set is published."""
        return self.path / "work"

    @property
    def journal(self) -> Path:
        """File of the whole shards."""
        return self.work / "journal.jsonl"

    def part(self, table: str, number: int) -> Path:
        """File of one entry's rows of ``pairs`` or ``rejects``, or of one part of the manifest."""
        return self.work / f"{table}-{number:05d}.parquet"

    def manifest(self, plan: Plan) -> list[Path]:
        """Files of all parts of the manifest."""
        return [self.part("manifest", i) for i in range(len(plan.part_rows))]

    def scan_rejects(self, plan: Plan) -> list[Path]:
        """Files of what the scan of each part has refused."""
        return [self.part("rejects-scan", i) for i in range(len(plan.part_rows))]
