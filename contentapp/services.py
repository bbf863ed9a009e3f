"""The composition root: which implementation stands behind each interface. The only importer of implementations."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from contentapp import __version__
from contentapp.catalog.admin import SqlAdminCatalog
from contentapp.catalog.content import SqlContentCatalog
from contentapp.catalog.engine import CatalogEngine, open_catalog
from contentapp.catalog.upkeep import SqlUpkeepCatalog
from contentapp.config import Config
from contentapp.coordination.local import LocalCoordination
from contentapp.core.errors import ContentAppError, NoSpace
from contentapp.core.records import Member
from contentapp.pipeline.alone import Alone
from contentapp.pipeline.chunked import ChunkMemory
from contentapp.pipeline.chunklists import ChunkLists
from contentapp.pipeline.collapse import Collapse
from contentapp.pipeline.deliver import Delivery
from contentapp.pipeline.discovery import Discovery
from contentapp.pipeline.document import Documents
from contentapp.pipeline.fetch import Fetcher
from contentapp.pipeline.flight import Flights
from contentapp.pipeline.intake import Intake
from contentapp.pipeline.learn import Learner
from contentapp.pipeline.leftovers import Leftovers
from contentapp.pipeline.listing import Listings
from contentapp.pipeline.lookup import Lookup
from contentapp.pipeline.manifest import ManifestBody, Manifests
from contentapp.pipeline.resolve import Content, Resolver
from contentapp.pipeline.route import Router
from contentapp.pipeline.store import Store
from contentapp.storage.filesystem import FilesystemStorage
from contentapp.storage.limit import LimitNotKept, first_limit
from contentapp.tasks.evict import Eviction
from contentapp.tasks.maintenance import MaintenanceTasks
from contentapp.tasks.runner import TaskRunner
from contentapp.tasks.scrub import Scrub
from contentapp.tasks.upkeep import Upkeep
from contentapp.tasks.verify import Verifier
from contentapp.upstream.http import HttpUpstream
from contentapp.upstream.limit import LimitUpstream
from contentapp.upstream.retry import RetryUpstream

CATALOG_FILE = "catalog.sqlite3"
RUN_FOLDER = "run"
SCRUB_FILE = "scrub-position"
SPACE_TOPIC = "space"
"""Published with a size in bytes when a write waits for room."""

WRITING_THREADS = 4
READING_THREADS = 2


def run_dir(config: Config) -> Path:
    """Locks, sockets, cooldowns and counters: shared by all processes of this installation."""
    return config.data_dir / RUN_FOLDER


def storage_limit(config: Config) -> int:
    """The quota in bytes."""
    if config.cache.max_size is not None:
        return config.cache.max_size
    try:
        return first_limit(config.data_dir)
    except LimitNotKept as error:
        return error.limit


@dataclass(frozen=True, slots=True)
class Shared:
    """What content and admin processes both need."""

    config: Config
    engine: CatalogEngine
    catalog: SqlContentCatalog
    upkeep: SqlUpkeepCatalog
    admin: SqlAdminCatalog
    coordination: LocalCoordination
    storage: FilesystemStorage


@asynccontextmanager
async def open_shared(config: Config) -> AsyncIterator[Shared]:
    """Open storage, catalog and coordination for one process; after any fork."""
    async with AsyncExitStack() as stack:
        coordination = LocalCoordination(run_dir(config))
        await coordination.start()
        stack.push_async_callback(coordination.close)
        loop = asyncio.get_running_loop()

        def space_wanted(size: int) -> None:
            loop.call_soon_threadsafe(coordination.publish, SPACE_TOPIC, str(size))

        storage = FilesystemStorage(
            config.data_dir,
            run_dir=run_dir(config),
            limit=storage_limit(config),
            space_wait_seconds=config.engine.space_wait_seconds,
            on_space_wanted=space_wanted,
        )
        stack.push_async_callback(storage.close)
        engine = await open_catalog(config.data_dir / CATALOG_FILE)
        stack.push_async_callback(engine.close)
        defaults = (config.remote_defaults, config.distribution_defaults)
        yield Shared(
            config,
            engine,
            SqlContentCatalog(engine, *defaults),
            SqlUpkeepCatalog(engine),
            SqlAdminCatalog(engine),
            coordination,
            storage,
        )


@dataclass(frozen=True, slots=True)
class ContentServices:
    """What a content worker runs."""

    shared: Shared
    delivery: Delivery
    router: Router
    lookup: Lookup
    flights: Flights
    leftovers: Leftovers
    learner: Learner

    async def readiness(self) -> str:
        """Why devices should not come here, "" if they may.

        They may as soon as it listens (P7): remotes, disk and database may all be ill, and what can be served is.
        """
        return ""


@asynccontextmanager
async def open_content(config: Config) -> AsyncIterator[ContentServices]:
    """Everything that a content worker needs, closed in the right order."""
    async with AsyncExitStack() as stack:
        shared = await stack.enter_async_context(open_shared(config))
        executor = ThreadPoolExecutor(WRITING_THREADS, thread_name_prefix="contentapp-write")
        stack.callback(executor.shutdown)
        coordination, engine = shared.coordination, config.engine
        http = HttpUpstream(user_agent=f"contentapp/{__version__}")
        stack.push_async_callback(http.close)
        lookup = Lookup(shared.catalog, coordination, engine.record_ttl_seconds)
        upstream = RetryUpstream(LimitUpstream(http, coordination.reserve))
        fetcher = Fetcher(upstream, coordination, on_absent=lookup.forget_source)
        store = Store(shared.storage, lookup, executor, engine.memory_cache_size)
        router = Router(shared.catalog, coordination)
        listings = Listings(fetcher, lookup, coordination)
        stack.push_async_callback(listings.close)
        collapse: Collapse[ManifestBody] = Collapse(coordination)
        members: Collapse[Member] = Collapse(coordination)
        contents: Collapse[Content] = Collapse(coordination)
        for each in (collapse, members, contents):
            stack.push_async_callback(each.close)
        chunk_memory = ChunkMemory()
        intake = Intake(fetcher, shared.storage, executor, engine, chunk_memory)
        stack.push_async_callback(intake.close)
        flights = Flights(coordination, intake)
        stack.push_async_callback(flights.close)
        manifests = Manifests(fetcher, store, lookup, collapse)
        chunk_lists = ChunkLists(fetcher, lookup)
        learner = Learner(shared.storage, lookup, engine.chunk_learning_rate)
        resolver = Resolver(
            fetcher,
            lookup,
            listings,
            store,
            members=members,
            contents=contents,
            chunk_lists=chunk_lists,
            learner=learner,
        )
        delivery = Delivery(
            router=router,
            resolver=resolver,
            documents=Documents(router, manifests, Discovery(fetcher), listings, lookup, chunk_lists),
            store=store,
            flights=flights,
            alone=Alone(fetcher, engine.range_requests, chunk_memory),
            settings=engine,
        )
        await router.load()
        leftovers = Leftovers(shared.storage, router, resolver, flights, engine)
        yield ContentServices(shared, delivery, router, lookup, flights, leftovers, learner)


@dataclass(frozen=True, slots=True)
class AdminServices:
    """What the admin process runs: `upkeep` and `runner` have to be run, and told when to stop."""

    shared: Shared
    eviction: Eviction
    verifier: Verifier
    upkeep: Upkeep
    runner: TaskRunner
    tasks: MaintenanceTasks

    async def readiness(self) -> str:
        """Why it is not ready, "" if it is: storage and catalog; never a remote, nor a full cache (P7)."""
        try:
            await self.shared.storage.check()
        except NoSpace:
            pass  # devices get their bytes all the same, unstored
        except ContentAppError as error:
            return f"storage: {error}"
        try:
            await self.shared.upkeep.artifact_count()
        except ContentAppError as error:
            return f"catalog: {error}"
        return ""


@asynccontextmanager
async def open_admin(config: Config) -> AsyncIterator[AdminServices]:
    """Everything that the admin process needs, closed in the right order."""
    async with AsyncExitStack() as stack:
        shared = await stack.enter_async_context(open_shared(config))
        executor = ThreadPoolExecutor(READING_THREADS, thread_name_prefix="contentapp-verify")
        stack.callback(executor.shutdown)
        stores = (shared.storage, shared.catalog, shared.upkeep, shared.coordination)
        eviction = Eviction(
            *stores, high_watermark=config.cache.high_watermark, low_watermark=config.cache.low_watermark
        )
        verifier = Verifier(*stores, executor, removing=eviction.removing)
        scrub = Scrub(verifier, shared.upkeep, config.engine, config.data_dir / SCRUB_FILE)
        upkeep = Upkeep(
            shared.storage,
            shared.upkeep,
            eviction,
            verifier,
            scrub,
            partial_max_age_seconds=config.engine.partial_max_age_seconds,
        )
        shared.coordination.subscribe(SPACE_TOPIC, upkeep.space_wanted)
        runner = TaskRunner()
        tasks = MaintenanceTasks(runner, verifier, eviction, upkeep)
        yield AdminServices(shared, eviction, verifier, upkeep, runner, tasks)
