"""No orphans: whatever ends this process, the servers that it started end too.

A server that is well behaved leaves when its input closes, which the system does for a process that is killed. One that hangs
does not. So a shell of a few lines waits beside them for its own input to close, and then ends the process groups it was told
of. On Windows the `mcp` package binds every server to a job that ends with this process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

# Each line that comes in holds all the groups there are; at its end they get a second to leave before they are killed.
_SCRIPT = """
while read -r line; do groups=$line; done
test -n "$groups" || exit 0
sleep 1
for group in $groups; do kill -s TERM -- "-$group"; done
sleep 1
for group in $groups; do kill -s KILL -- "-$group"; done
"""


class Guard:
    """Knows the process groups of running servers."""

    def __init__(self) -> None:
        self._groups: set[int] = set()
        self._shell: subprocess.Popen[bytes] | None = None

    def watch(self, group: int) -> None:
        """A group that must not outlive this process."""
        if sys.platform == "win32":
            return
        if self._shell is None:
            null = subprocess.DEVNULL
            command = ["/bin/sh", "-c", _SCRIPT]
            self._shell = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=null, stderr=null, cwd="/", start_new_session=True
            )
        self._groups.add(group)
        self._tell()

    def end(self, group: int) -> None:
        """Ask a group to leave that did not go when its input was closed."""
        if sys.platform != "win32" and group in self._groups:
            with contextlib.suppress(OSError):
                os.killpg(group, signal.SIGTERM)

    def forget(self, group: int) -> None:
        """A group whose server is gone; what that left behind is ended now."""
        if sys.platform != "win32" and group in self._groups:
            with contextlib.suppress(OSError):
                os.killpg(group, signal.SIGKILL)
            self._groups.discard(group)
            self._tell()

    def close(self) -> None:
        """End the shell, which ends every group that is still known."""
        if self._shell is not None and self._shell.stdin is not None:
            with contextlib.suppress(OSError):
                self._shell.stdin.close()
            if not self._groups:
                self._shell.wait()
            self._shell = None

    def _tell(self) -> None:
        assert self._shell is not None and self._shell.stdin is not None
        with contextlib.suppress(OSError):  # somebody ended the shell: then there is no guard
            self._shell.stdin.write(f"{' '.join(map(str, self._groups))}\n".encode())
            self._shell.stdin.flush()
