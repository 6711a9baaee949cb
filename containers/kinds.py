"""What the tests know about each kind of server: how it is configured, started as a container or a process, and asked.

A kind decides nothing about where a server runs (`sources`) or for how long (`servers`). Drivers are imported when a
server is asked, not before, so that the core's tests need none of them.
"""

import asyncio
import importlib
import importlib.util
import shutil
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from urllib.parse import quote, unquote, urlsplit

T = TypeVar("T")
PATIENCE = 2.0  # seconds that a running server has to answer one question
PROGRAM_PATHS = ":".join(["/usr/sbin", "/usr/local/sbin", *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin")))])


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens and how to log in. What a server does not have (a user, a password) is None."""

    host: str
    port: int
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    database: str | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """What a kind needs to lay out a server that runs as a process of an ordinary user."""

    directory: Path
    address: Address
    upstream: Address | None
    run: Callable[[Sequence[str], str], None]  # command line, standard input


class Kind:
    """One kind of server. The class attributes say what it is called in the places where it can be had."""

    key: ClassVar[str]
    package: ClassVar[str]  # its tests need this server, so it is started when they are collected
    image: ClassVar[str]
    port: ClassVar[int]  # inside a container
    scheme: ClassVar[str]
    driver: ClassVar[str]
    debian: ClassVar[str]
    programs: ClassVar[tuple[str, ...]]
    upstream: ClassVar[str | None] = None
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    login: ClassVar[Address] = Address("127.0.0.1", 0, "pool", "secret", "pool")

    def url(self, address: Address) -> str:
        """The URL that an adapter takes."""
        user = quote(address.user or "", safe="")
        login = f"{user}:{quote(address.password, safe='')}@" if address.password else f"{user}@" if user else ""
        return f"{self.scheme}://{login}{address.host}:{address.port}/{address.database or ''}"

    def parse(self, url: str) -> Address:
        """The address in a URL that a person gave in POOL_TEST_<KIND>_URL."""
        parts = urlsplit(url)
        if not parts.hostname:
            raise ValueError(f"POOL_TEST_{self.key.upper()}_URL names no host; expected {self.scheme}://host:port/...")
        text = [unquote(part) if part else None for part in (parts.username, parts.password, parts.path.strip("/"))]
        return Address(parts.hostname, parts.port or self.port, *text)

    def with_password(self, password: str) -> Address:
        """The login of a server that asks for `password`."""
        return replace(self.login, password=password)

    def missing(self) -> str | None:
        """Why no process of this kind can be started on this machine, or None."""
        absent = [program for program in self.programs if not find(program)]
        return f"{', '.join(absent)} not installed (Debian package {self.debian})" if absent else None

    def environment(self, login: Address, upstream: Address | None) -> dict[str, str]:
        """The environment of a container."""
        return {}

    def arguments(self, login: Address) -> list[str]:
        """The command line of a container, before a test's own arguments."""
        return []

    def prepare(self, place: Place) -> None:
        """Lay out the directory of a process before its first start."""

    def command(self, place: Place) -> list[str]:
        """The command line of a process, before a test's own arguments."""
        raise NotImplementedError

    def ask(self, address: Address, execute: Callable[[Sequence[str]], str]) -> tuple[str, str]:
        """Ask the server for its true name and version. Raises while it does not answer."""
        raise NotImplementedError


class Postgres(Kind):
    key, package, image, port, scheme = "postgres", "pool-postgres", "postgres:15", 5432, "postgresql"
    driver, debian, programs = "asyncpg", "postgresql", ("postgres", "initdb")
    stop_signal = signal.SIGINT  # the fast shutdown: SIGTERM would wait for the clients to go

    def environment(self, login: Address, upstream: Address | None) -> dict[str, str]:
        return {f"POSTGRES_{name}": value for name, value in _login(login, database="DB").items()}

    def prepare(self, place: Place) -> None:
        user, database = place.address.user, place.address.database
        options = ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]
        secret = place.directory / "secret"
        secret.write_text(f"{place.address.password}\n")
        login = [f"--username={user}", f"--pwfile={secret}"]
        place.run([_path("initdb"), "-D", f"{place.directory}/data", *login, *options], "")
        secret.unlink()
        place.run(
            [_path("postgres"), "--single", "-j", "-D", f"{place.directory}/data", "postgres"],
            f'CREATE DATABASE "{database}"\n',
        )

    def command(self, place: Place) -> list[str]:
        port, directory = str(place.address.port), str(place.directory)
        local = ["-c", "listen_addresses=127.0.0.1"]
        return [_path("postgres"), "-D", f"{directory}/data", "-k", directory, "-p", port, *local]

    def ask(self, address: Address, execute: Callable[[Sequence[str]], str]) -> tuple[str, str]:
        return "PostgreSQL", str(_in_a_loop(_ask_postgres(address, "SHOW server_version")))


class PgBouncer(Kind):
    key, package, image, port, scheme = "pgbouncer", "pool-postgres", "edoburu/pgbouncer:1", 5432, "postgresql"
    driver, debian, programs = "asyncpg", "pgbouncer", ("pgbouncer",)
    upstream = "postgres"
    stop_signal = signal.SIGINT

    def environment(self, login: Address, upstream: Address | None) -> dict[str, str]:
        assert upstream is not None, "bug: PgBouncer was started without a PostgreSQL behind it"
        behind = {"DB_HOST": upstream.host, "DB_PORT": str(upstream.port)}
        modes = {"POOL_MODE": "transaction", "AUTH_TYPE": "scram-sha-256"}
        return {f"DB_{name}": value for name, value in _login(login, database="NAME").items()} | behind | modes

    def prepare(self, place: Place) -> None:
        assert place.upstream is not None, "bug: PgBouncer was started without a PostgreSQL behind it"
        here, behind, directory = place.address, place.upstream, place.directory
        (directory / "users").write_text(f'"{here.user}" "{here.password}"\n')
        (directory / "pgbouncer.ini").write_text(
            f"[databases]\n{here.database} = host={behind.host} port={behind.port} auth_user={here.user}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {here.port}\nunix_socket_dir =\n"
            f"auth_file = {directory}/users\nauth_type = scram-sha-256\npool_mode = transaction\n"
            f"ignore_startup_parameters = extra_float_digits\nadmin_users = {here.user}\n"
        )

    def command(self, place: Place) -> list[str]:
        return [_path("pgbouncer"), f"{place.directory}/pgbouncer.ini"]

    def ask(self, address: Address, execute: Callable[[Sequence[str]], str]) -> tuple[str, str]:
        # A query proves the whole way through to PostgreSQL. PgBouncer's own SHOW VERSION takes the simple protocol
        # only, which asyncpg does not offer for rows: its program says the version.
        behind = _in_a_loop(_ask_postgres(address, "SHOW server_version"))
        words = execute(["pgbouncer", "--version"]).split()
        return "PgBouncer", f"{words[1] if len(words) > 1 else 'of unknown version'} before PostgreSQL {behind}"


class Redis(Kind):
    key, package, image, port, scheme = "redis", "pool-redis", "redis:7", 6379, "redis"
    driver, debian, programs = "redis", "redis-server", ("redis-server",)
    login = Address("127.0.0.1", 0, database="0")

    def arguments(self, login: Address) -> list[str]:
        return ["--requirepass", login.password] if login.password else []

    def command(self, place: Place) -> list[str]:
        where = ["--port", str(place.address.port), "--bind", "127.0.0.1", "--dir", str(place.directory)]
        return [_path("redis-server"), *where, *self.arguments(place.address)]

    def ask(self, address: Address, execute: Callable[[Sequence[str]], str]) -> tuple[str, str]:
        redis = library("redis")
        once = library("redis.retry").Retry(library("redis.backoff").NoBackoff(), 0)
        with redis.Redis(
            host=address.host,
            port=address.port,
            username=address.user,
            password=address.password,
            socket_timeout=PATIENCE,
            socket_connect_timeout=PATIENCE,
            retry=once,
        ) as client:
            facts = client.info("server")
        name = str(facts.get("server_name", "redis")).capitalize()
        return name, str(facts.get(f"{name.lower()}_version", facts["redis_version"]))


class MariaDB(Kind):
    key, package, image, port, scheme = "mariadb", "pool-mysql", "mariadb:10.11", 3306, "mysql"
    driver, debian, programs = "pymysql", "mariadb-server", ("mariadbd", "mariadb-install-db")

    def environment(self, login: Address, upstream: Address | None) -> dict[str, str]:
        named = {f"MARIADB_{name}": value for name, value in _login(login, database="DATABASE").items()}
        return named | {"MARIADB_ROOT_PASSWORD": login.password or ""}

    def prepare(self, place: Place) -> None:
        here, data = place.address, f"--datadir={place.directory}/data"
        quiet = ["--skip-test-db", "--auth-root-authentication-method=normal", "--skip-name-resolve"]
        place.run([_path("mariadb-install-db"), "--no-defaults", data, *quiet], "")
        password = (here.password or "").replace("\\", "\\\\").replace("'", "''")
        place.run(
            [_path("mariadbd"), "--no-defaults", data, "--bootstrap", "--skip-name-resolve", "--log-warnings=0"],
            "FLUSH PRIVILEGES;\n"
            f"ALTER USER root@localhost IDENTIFIED BY '{password}';\n"
            f"CREATE DATABASE `{here.database}`;\n"
            f"CREATE USER '{here.user}'@'%' IDENTIFIED BY '{password}';\n"
            f"GRANT ALL ON `{here.database}`.* TO '{here.user}'@'%';\n",
        )

    def command(self, place: Place) -> list[str]:
        directory = place.directory
        files = [f"--datadir={directory}/data", f"--socket={directory}/socket", f"--pid-file={directory}/pid"]
        where = [f"--port={place.address.port}", "--bind-address=127.0.0.1", "--skip-name-resolve"]
        return [_path("mariadbd"), "--no-defaults", *files, *where]

    def ask(self, address: Address, execute: Callable[[Sequence[str]], str]) -> tuple[str, str]:
        pymysql = library("pymysql")
        limits = {"connect_timeout": PATIENCE, "read_timeout": PATIENCE, "write_timeout": PATIENCE}
        connection = pymysql.connect(
            host=address.host,
            port=address.port,
            user=address.user,
            password=address.password or "",
            database=address.database,
            **limits,
        )
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT VERSION()")
                version = str(cursor.fetchone()[0])
        finally:
            connection.close()
        return ("MariaDB" if "MariaDB" in version else "MySQL"), version.split("-", maxsplit=1)[0]


class Mongo(Kind):
    key, package, image, port, scheme = "mongo", "pool-mongo", "mongo:7", 27017, "mongodb"
    driver, debian, programs = "pymongo", "none: pip install secantusdb, its stand-in", ("mongod",)
    login = Address("127.0.0.1", 0, database="pool")

    def url(self, address: Address) -> str:
        # directConnection: a replica set of one names itself by an address that only it can reach.
        login = "&authSource=admin" if address.password else ""
        return f"{super().url(address)}?directConnection=true{login}"

    def with_password(self, password: str) -> Address:
        return replace(self.login, user="pool", password=password)

    def environment(self, login: Address, upstream: Address | None) -> dict[str, str]:
        names = {"USER": "MONGO_INITDB_ROOT_USERNAME", "PASSWORD": "MONGO_INITDB_ROOT_PASSWORD"}
        return {names[name]: value for name, value in _login(login, database=None).items()}

    def arguments(self, login: Address) -> list[str]:
        # A replica set, since transactions need one; but with a password MongoDB would also ask for a key file.
        return [] if login.password else ["--replSet", "rs0"]

    def missing(self) -> str | None:
        return None if importlib.util.find_spec("secantus") else super().missing()

    def command(self, place: Place) -> list[str]:
        where = ["--port", str(place.address.port), "--bind_ip", "127.0.0.1", "--dbpath", str(place.directory)]
        if find("mongod"):
            if place.address.password:
                raise ValueError("an installed mongod is started without users: for a password use a container")
            return [_path("mongod"), *where, *self.arguments(place.address)]
        stand_in = Path(__file__).parent / "images" / "mongo" / "mongod.py"
        return [sys.executable, str(stand_in), *where, *self.arguments(place.address)]

    def ask(self, address: Address, execute: Callable[[Sequence[str]], str]) -> tuple[str, str]:
        pymongo = library("pymongo")
        milliseconds = int(PATIENCE * 1000)
        client = pymongo.MongoClient(
            address.host,
            address.port,
            username=address.user,
            password=address.password,
            directConnection=True,
            serverSelectionTimeoutMS=milliseconds,
            socketTimeoutMS=milliseconds,
        )
        with client:
            hello = client.admin.command("hello")
            if hello.get("isreplicaset"):
                member = {"_id": 0, "host": f"127.0.0.1:{self.port}"}
                client.admin.command("replSetInitiate", {"_id": "rs0", "members": [member]})
                hello = client.admin.command("hello")
            if not hello.get("isWritablePrimary"):
                raise ConnectionError("the replica set has no primary yet")
            facts = client.server_info()
            if address.password:
                client[address.database or "pool"].command("ping")
        if "secantusVersion" in facts:
            return "SecantusDB", f"{facts['secantusVersion']} standing in for MongoDB {facts['version']}"
        return "MongoDB", str(facts["version"])


KINDS: dict[str, Kind] = {kind.key: kind for kind in (Postgres(), PgBouncer(), Redis(), MariaDB(), Mongo())}


def library(name: str) -> Any:
    """Import a driver or another library of the tests when it is needed, whether or not it has types."""
    return importlib.import_module(name)


def find(program: str) -> str | None:
    """The path of an installed server; Debian keeps some outside of an ordinary user's PATH."""
    return shutil.which(program) or shutil.which(program, path=PROGRAM_PATHS)


def _path(program: str) -> str:
    path = find(program)
    assert path is not None, f"bug: {program} is started though it is missing"
    return path


def _login(login: Address, *, database: str | None) -> dict[str, str]:
    named = {"USER": login.user, "PASSWORD": login.password}
    if database is not None:
        named[database] = login.database
    return {name: value for name, value in named.items() if value is not None}


async def _ask_postgres(address: Address, query: str) -> object:
    connection = await library("asyncpg").connect(
        host=address.host,
        port=address.port,
        user=address.user,
        password=address.password,
        database=address.database,
        timeout=PATIENCE,
        statement_cache_size=0,  # PgBouncer may send the next statement to another server connection
    )
    try:
        return await connection.fetchval(query, timeout=PATIENCE)
    finally:
        connection.terminate()  # close() would wait for ever on a server that hangs


def _in_a_loop(coroutine: Coroutine[Any, Any, T]) -> T:
    # In a thread of its own: a test may ask for a server while its own loop runs.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()
