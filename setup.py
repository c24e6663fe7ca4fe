"""Pack the suite's own tests into the wheel; everything else stands in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

#: Below ``precision_lib/suite`` in the wheel; ``precision_lib/plugin/packaged.py`` runs them.
PACKED = ("tests/__init__.py", "tests/forensics/*.py", "tests/sweep/*.py")


class BuildWithTests(build_py):
    """``build_py``, then the packed tests; an editable install reads those of the checkout."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for pattern in PACKED:
            for source in sorted(Path().glob(pattern)):
                copy = Path(self.build_lib, "precision_lib", "suite", source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                self.copy_file(str(source), str(copy))


setup(cmdclass={"build_py": BuildWithTests})
