"""The version of the package, apart from `dhr_batch` itself so that any module may import it."""

__version__ = "0.1.0"
