"""The face of the catalog that the data path asks."""

from __future__ import annotations

from contentapp.catalog.artifact import ArtifactQueries
from contentapp.catalog.chunk import ChunkQueries
from contentapp.catalog.file import FileQueries
from contentapp.catalog.listing import ListingQueries
from contentapp.catalog.registry import RegistryQueries
from contentapp.catalog.resource import ResourceQueries


class SqlContentCatalog(ResourceQueries, RegistryQueries, FileQueries, ListingQueries, ArtifactQueries, ChunkQueries):
    """A ContentCatalog on an engine from `open_catalog`; takes that, RemoteSettings and DistributionSettings.

    The settings are the whole program's: what a remote or distribution does not set itself.
    """
