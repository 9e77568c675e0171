"""The README for a package index: its links and pictures lead to the repository, as soon as pyproject.toml names one."""

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s]+)\)")


def absolute(text: str, repository: str) -> str:
    """Markdown whose relative links lead into `repository` on GitHub, pictures to their files."""
    return RELATIVE.sub(lambda link: f"{link[1]}[{link[2]}]({repository}/{'raw' if link[1] else 'blob'}/HEAD/{link[3]})", text)


class Readme(MetadataHookInterface):
    """Hatch calls this when it reads the project's metadata."""

    def update(self, metadata: dict) -> None:
        """Put the README into the metadata."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        repository = metadata.get("urls", {}).get("Repository")
        metadata["readme"] = {"content-type": "text/markdown", "text": absolute(text, repository) if repository else text}
