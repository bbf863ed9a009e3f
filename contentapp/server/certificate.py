"""The content listener's certificate, loaded again when its files change."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import structlog

log = structlog.get_logger("contentapp.tls")

CHECK_SECONDS = 2.0


class Certificate:
    """A server context whose certificate is replaced in place: new connections get the new one."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self._stamp = self._stat()
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        self.context.load_cert_chain(certificate, key)

    def _stat(self) -> tuple[tuple[int, int, int], ...]:
        """Files that are replaced by rename have another inode; ones written in place another time or size."""
        found = []
        for file in self._files:
            stat = file.stat()
            found.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
        return tuple(found)

    def reload(self) -> bool:
        """Load the files again if they have changed; whether that was so. A pair that does not fit is left for
        later.
        """
        try:
            stamp = self._stat()
            if stamp == self._stamp:
                return False
            # A broken pair must not spoil the context in use: it is tried on another one first.
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(*self._files)
            self.context.load_cert_chain(*self._files)
        except (OSError, ssl.SSLError) as error:
            log.warning("certificate not reloaded", error=type(error).__name__, certificate=str(self._files[0]))
            return False
        self._stamp = stamp
        log.info("certificate reloaded", certificate=str(self._files[0]))
        return True

    async def follow_changes(self) -> None:
        """Look every few seconds; runs until cancelled."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            self.reload()
