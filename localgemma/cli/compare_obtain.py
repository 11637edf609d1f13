"""Missing files of a comparison: quantisations made from the reference (--make), models pulled (--pull)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from localgemma import settings
from localgemma.cli.output import Output, interruptible
from localgemma.engine import CancelToken
from localgemma.errors import NotDownloaded, UsageError
from localgemma.units import format_size


@dataclass(frozen=True, slots=True)
class Obtain:
    """How what is missing may be had, and the file that quantisations are made from (None: a reference file, or none)."""

    output: Output
    source: str | None
    make: bool = False
    pull: bool = False

    def path(self, name: str) -> str:
        """A name or path that is here: the name itself, or the file that was made. Raises what making and pulling do."""
        from localgemma.make.types import FILE_TYPES

        if name.upper() in FILE_TYPES and not Path(name).exists():
            return str(self._made(name.upper()))
        if self.pull:
            self._pull(name)
        return name

    def _made(self, file_type: str) -> Path:
        from localgemma.cli.imatrix import find_model
        from localgemma.make import quantize
        from localgemma.make.quantize import Wish

        if not self.make or self.source is None:
            raise UsageError(
                f"{file_type} names a quantisation, not a file.",
                f"Make it from the reference: --reference FILE {file_type} --make",
            )
        source = find_model(self.source).text
        folder = settings.load().cache_dir / "compare-files"
        stat = source.stat()
        target = folder / f"{source.stem}-{stat.st_size:x}-{stat.st_mtime_ns:x}-{file_type}.gguf"
        if target.exists():
            return target
        folder.mkdir(parents=True, exist_ok=True)
        plan = quantize.make_plan(source, Wish(file_type))
        cancel = CancelToken()
        with interruptible(cancel, self.output):
            quantize.run_plan(plan, target, progress=self.output.progress, cancel=cancel)
        self.output.note(
            f"Made {file_type} from {source.name}: {target}, {format_size(plan.size)}; it stays for the next time."
        )
        return target

    def _pull(self, name: str) -> None:
        from localgemma import runtime
        from localgemma.cli.imatrix import find_model

        try:
            find_model(name)
        except NotDownloaded as missing:
            self.output.note(f"{missing.message} It is downloaded now (--pull).")
            cancel = CancelToken()
            with interruptible(cancel, self.output):
                runtime.pull(name, cancel=cancel)
