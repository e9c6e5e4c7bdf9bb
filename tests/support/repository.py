"""Where the repository's files are, and its documents."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("label_config/*.md")])


def name_of(path: Path) -> str:
    """A file's path within the repository."""
    return str(path.relative_to(ROOT))
