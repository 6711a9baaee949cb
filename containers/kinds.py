"""What the tests know about each kind of server: how it is configured, started as a container or a process, and asked.

A kind decides nothing about where a server runs (`sources`) or for how long (`servers`). Drivers are imported when a
server is asked, not before, so that the core's tests need none of them.
"""

import asyncio
import base64
import importlib
import importlib.util
import json
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar
from urllib.parse import quote, unquote, urlsplit

from . import wire
from .address import PATIENCE, Address

T = TypeVar("T")
PROGRAM_PATHS = ":".join(["/usr/sbin", "/usr/local/sbin", *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin")))])


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
    package: ClassVar[str | None] = None  # its tests need this server, so it is started when they are collected
    images: ClassVar[tuple[str, ...]]  # one for each version, the newest first
    port: ClassVar[int]  # inside a container
    scheme: ClassVar[str]
    driver: ClassVar[str | None] = None  # that `ask` imports
    debian: ClassVar[str] = ""
    programs: ClassVar[tuple[str, ...]] = ()  # of a process; without any it runs in containers only
    in_python: ClassVar[bool] = False  # its process is a program of this environment
    upstream: ClassVar[str | None] = None
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    login: ClassVar[Address] = Address("127.0.0.1", 0, "pool", "secret", "pool")

    def __init__(self, image: str | None = None) -> None:
        self.image = image or next(iter(self.images), self.key)

    @classmethod
    def versions(cls) -> dict[str, str]:
        """The image of each version, the newest first."""
        return {image.rpartition(":")[2]: image for image in cls.images}

    def at(self, version: str | int) -> Self:
        """This kind at one of its versions."""
        versions = self.versions()
        if str(version) not in versions:
            raise ValueError(f"no {self.key} of version {version!s}: choose one of {', '.join(versions)}")
        return type(self)(versions[str(version)])

    def driver_is_missing(self) -> bool:
        """Whether `ask` would fail for want of a driver."""
        return self.driver is not None and importlib.util.find_spec(self.driver) is None

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
        if not self.programs:
            return f"tests run {self.key} in a container only"
        absent = [program for program in self.programs if not find(program)]
        return f"{', '.join(absent)} not installed (Debian package {self.debian})" if absent else None

    def installed(self) -> str:
        """The version of the installed program."""
        done = subprocess.run([_path(self.programs[0]), "--version"], capture_output=True, text=True, check=False)
        match = re.search(r"\d+(\.\d+)+", done.stdout)
        return match[0] if match else "unknown"

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
    key, package, port, scheme = "postgres", "pool-postgres", 5432, "postgresql"
    images = ("postgres:18", "postgres:15")
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
    key, package, port, scheme = "pgbouncer", "pool-postgres", 5432, "postgresql"
    images = ("edoburu/pgbouncer:1.26", "edoburu/pgbouncer:1")
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
    key, package, port, scheme = "redis", "pool-redis", 6379, "redis"
    images: ClassVar[tuple[str, ...]] = ("redis:8", "redis:7")
    driver, debian, programs = "redis", "redis-server", ("redis-server",)
    login = Address("127.0.0.1", 0, database="0")

    def arguments(self, login: Address) -> list[str]:
        return ["--requirepass", login.password] if login.password else []

    def command(self, place: Place) -> list[str]:
        where = ["--port", str(place.address.port), "--bind", "127.0.0.1", "--dir", str(place.directory)]
        return [_path(self.programs[0]), *where, *self.arguments(place.address)]

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


class Valkey(Redis):
    key, images = "valkey", ("valkey/valkey:9",)
    debian, programs = "valkey-server", ("valkey-server",)


class MariaDB(Kind):
    key, package, port, scheme = "mariadb", "pool-mysql", 3306, "mysql"
    images: ClassVar[tuple[str, ...]] = ("mariadb:10.11",)
    driver, debian = "pymysql", "mariadb-server"
    programs: ClassVar[tuple[str, ...]] = ("mariadbd", "mariadb-install-db")

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


class MySQL(MariaDB):
    key, images = "mysql", ("mysql:9",)
    debian, programs = "mysql-server-core-9.7, of unstable only", ("mysqld",)

    def missing(self) -> str | None:
        if reason := super().missing():
            return reason
        # MariaDB's packages install their server under this name too.
        said = subprocess.run([_path("mysqld"), "--version"], capture_output=True, text=True, check=False).stdout
        return "the installed mysqld is MariaDB's" if "MariaDB" in said else None

    def environment(self, login: Address, upstream: Address | None) -> dict[str, str]:
        named = {f"MYSQL_{name}": value for name, value in _login(login, database="DATABASE").items()}
        return named | {"MYSQL_ROOT_PASSWORD": login.password or ""}

    def prepare(self, place: Place) -> None:
        here = place.address
        data = ["--no-defaults", f"--datadir={place.directory}/data"]
        place.run([_path("mysqld"), *data, "--initialize-insecure", "--log-error-verbosity=1"], "")
        password = (here.password or "").replace("\\", "\\\\").replace("'", "''")
        # The server runs this file at each start, before it opens its port.
        (place.directory / "login.sql").write_text(
            f"ALTER USER root@localhost IDENTIFIED BY '{password}';\n"
            f"CREATE DATABASE IF NOT EXISTS `{here.database}`;\n"
            f"CREATE USER IF NOT EXISTS '{here.user}'@'%' IDENTIFIED BY '{password}';\n"
            f"GRANT ALL ON `{here.database}`.* TO '{here.user}'@'%';\n"
        )

    def command(self, place: Place) -> list[str]:
        directory = place.directory
        files = [f"--datadir={directory}/data", f"--socket={directory}/socket", f"--pid-file={directory}/pid"]
        where = [f"--port={place.address.port}", "--bind-address=127.0.0.1", "--skip-name-resolve", "--mysqlx=OFF"]
        begin = [f"--init-file={directory}/login.sql", "--secure-file-priv=NULL"]
        return [_path("mysqld"), "--no-defaults", *files, *where, *begin]


class Mongo(Kind):
    key, package, port, scheme = "mongo", "pool-mongo", 27017, "mongodb"
    images = ("mongo:7",)
    driver, debian, programs = "pymongo", "none: pip install secantusdb, its stand-in", ("mongod",)
    in_python = True
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


class Memcached(Kind):
    key, package, port, scheme = "memcached", "pool-memcached", 11211, "memcached"
    images = ("memcached:1",)
    debian, programs = "memcached", ("memcached",)
    login = Address("127.0.0.1", 0)

    def with_password(self, password: str) -> Address:
        return replace(self.login, user="pool", password=password)

    def arguments(self, login: Address) -> list[str]:
        if not login.password:
            return []
        # The official image has no variable for a login, and memcached reads it from a file.
        script = 'echo "$0" >/tmp/users && exec memcached -u nobody -Y /tmp/users "$@"'
        return ["sh", "-c", script, f"{login.user}:{login.password}"]

    def prepare(self, place: Place) -> None:
        if place.address.password:
            (place.directory / "users").write_text(f"{place.address.user}:{place.address.password}\n")

    def command(self, place: Place) -> list[str]:
        login = ["-Y", str(place.directory / "users")] if place.address.password else []
        return [_path("memcached"), "-l", "127.0.0.1", "-p", str(place.address.port), *login]

    def ask(self, address: Address, execute: Callable[[Sequence[str]], str]) -> tuple[str, str]:
        return "memcached", wire.ask_memcached(address)


class RabbitMQ(Kind):
    key, package, port, scheme = "rabbitmq", "pool-rabbitmq", 5672, "amqp"
    images = ("rabbitmq:4",)
    login = Address("127.0.0.1", 0, "pool", "secret", "/")

    def url(self, address: Address) -> str:
        return super().url(replace(address, database=quote(address.database or "/", safe="")))

    def environment(self, login: Address, upstream: Address | None) -> dict[str, str]:
        host = {"RABBITMQ_DEFAULT_VHOST": login.database or "/"}
        return {"RABBITMQ_DEFAULT_USER": login.user or "", "RABBITMQ_DEFAULT_PASS": login.password or ""} | host

    def ask(self, address: Address, execute: Callable[[Sequence[str]], str]) -> tuple[str, str]:
        return wire.ask_amqp(address)


class Neo4j(Kind):
    key, package, port, scheme = "neo4j", "pool-neo4j", 7687, "bolt"
    images = ("neo4j:5",)
    login = Address("127.0.0.1", 0, "neo4j", "at-least-8")

    def environment(self, login: Address, upstream: Address | None) -> dict[str, str]:
        return {"NEO4J_AUTH": f"{login.user}/{login.password}"}

    def ask(self, address: Address, execute: Callable[[Sequence[str]], str]) -> tuple[str, str]:
        name, _, version = wire.ask_bolt(address).partition("/")
        stand_in = execute(["cat", "/opt/falkordb/version"])
        if stand_in.startswith("FalkorDB "):
            return "FalkorDB", f"{stand_in.removeprefix('FalkorDB ')} standing in for {name} {version}"
        return name, version


class Double(Kind):
    """A kind that no image stands in for: without the official one a double of its protocol in images/ runs."""

    in_python = True

    def missing(self) -> str | None:
        return None

    def installed(self) -> str:
        return self.image.rpartition(":")[2]

    def command(self, place: Place) -> list[str]:
        program = Path(__file__).parent / "images" / self.key / "double.py"
        return [sys.executable, str(program), str(place.address.port), place.address.password or ""]


class ArangoDB(Double):
    key, package, port, scheme = "arangodb", "pool-arangodb", 8529, "arangodb"
    images = ("arangodb:3.12",)
    login = Address("127.0.0.1", 0, "root", "secret", "_system")

    def environment(self, login: Address, upstream: Address | None) -> dict[str, str]:
        return {"ARANGO_ROOT_PASSWORD": login.password or ""}

    def ask(self, address: Address, execute: Callable[[Sequence[str]], str]) -> tuple[str, str]:
        login = base64.b64encode(f"{address.user}:{address.password}".encode()).decode()
        request = urllib.request.Request(
            f"http://{address.host}:{address.port}/_api/version", headers={"Authorization": f"Basic {login}"}
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            facts = json.loads(answer.read())
        return ("Protocol double" if facts["server"] == "double" else "ArangoDB"), str(facts["version"])


class Nebula(Double):
    """NebulaGraph is three kinds of servers, so no one image runs it: POOL_TEST_NEBULA_URL, or the double."""

    key, port, scheme = "nebula", 9669, "nebula"
    images = ()
    driver = "nebula3"
    login = Address("127.0.0.1", 0, "root", "secret", "pool")

    def ask(self, address: Address, execute: Callable[[Sequence[str]], str]) -> tuple[str, str]:
        connection = library("nebula3.gclient.net.Connection").Connection()
        connection.open(address.host, address.port, int(PATIENCE * 1000))
        try:
            number = connection.authenticate(address.user, address.password).get_session_id()
            hosts = connection.execute(number, "SHOW HOSTS GRAPH")
        finally:
            connection.close()
        if hosts.error_code != 0:
            return "Protocol double", "of NebulaGraph 3"
        return "NebulaGraph", hosts.data.rows[0].values[-1].get_sVal().decode()


class SQLServer(Kind):
    """Only as the official image: nothing that could be built here speaks its protocol."""

    key, images, port, scheme = "sqlserver", ("mcr.microsoft.com/mssql/server:2022-latest",), 1433, "mssql"
    driver = "pyodbc"
    login = Address("127.0.0.1", 0, "sa", "Not-a-secret-1", "master")

    def url(self, address: Address) -> str:
        return f"{super().url(address)}?TrustServerCertificate=yes"

    def environment(self, login: Address, upstream: Address | None) -> dict[str, str]:
        return {"ACCEPT_EULA": "Y", "MSSQL_SA_PASSWORD": login.password or ""}

    def ask(self, address: Address, execute: Callable[[Sequence[str]], str]) -> tuple[str, str]:
        pyodbc = library("pyodbc")
        drivers = sorted(name for name in pyodbc.drivers() if name.endswith("for SQL Server"))
        where = {"driver": drivers[-1], "server": f"{address.host},{address.port}", "TrustServerCertificate": "yes"}
        raw = pyodbc.connect(**where, uid=address.user, pwd=address.password, timeout=int(PATIENCE) or 1)
        try:
            version = raw.execute("SELECT CAST(SERVERPROPERTY('ProductVersion') AS varchar(30))").fetchval()
        finally:
            raw.close()
        return "SQL Server", str(version)


KINDS: dict[str, Kind] = {
    kind.key: kind
    for kind in (
        Postgres(),
        PgBouncer(),
        Redis(),
        Valkey(),
        MySQL(),
        MariaDB(),
        Mongo(),
        Memcached(),
        RabbitMQ(),
        Neo4j(),
        ArangoDB(),
        Nebula(),
        SQLServer(),
    )
}

# Servers of one protocol, which an adapter's tests run on one after the other: the fixture `dialect` names the one.
DIALECTS = {
    "pool-mysql": ("mysql", "mariadb"),
    "pool-odbc": ("postgres", "mysql", "mariadb"),
    "pool-redis": ("redis", "valkey"),
}


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
