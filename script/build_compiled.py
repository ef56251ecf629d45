"""The build hook that compiles hot modules with mypyc; off unless HATCH_BUILD_HOOK_ENABLE_CUSTOM=1.

Works on a copy, so that nothing compiled is ever left beside the sources: it would shadow edits.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_LEVEL_VARIABLE = "MESHD_BUILD_OPT_LEVEL"
"""How far the C compiler optimises, 0..3: the build with 0 takes a third of the time."""
_SETUP = """
import sys
from mypyc.build import mypycify
from setuptools import setup

made = mypycify(
    # What is not compiled need not be clean here: stubs of third parties may be missing.
    ["--config-file=mypy.toml", "--follow-imports=silent", *sys.argv[3:]],
    opt_level=sys.argv[2],
    debug_level="0",
    group_name="meshd.compiled",
)
arguments = ["--quiet", "build_ext", "--build-lib", sys.argv[1]]
setup(name="meshd", ext_modules=made, script_args=arguments)
"""


class CompiledBuild(BuildHookInterface):
    """Puts the modules that pyproject.toml names into the wheel a second time, compiled.

    Python imports a compiled module before its source; tracebacks read the source.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, unless this is an editable install: there edits must count."""
        if version == "editable":
            return
        self._place = tempfile.TemporaryDirectory(prefix="meshd-compiled-")
        place, root = Path(self._place.name), Path(self.root)
        for package in ("meshd", "sim"):
            shutil.copytree(root / package, place / package, ignore=shutil.ignore_patterns("*.pyc"))
        # Under its own name setuptools would read it, too.
        shutil.copy(root / "pyproject.toml", place / "mypy.toml")
        made = place / "made"
        level = os.environ.get(_LEVEL_VARIABLE, "3")
        done = subprocess.run(
            [sys.executable, "-c", _SETUP, str(made), level, *self.config["modules"]],
            cwd=place,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"mypyc could not compile:\n{done.stdout}")
        for file in made.rglob("*.*"):
            build_data["force_include"][str(file)] = file.relative_to(made).as_posix()
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, _build_data: dict[str, Any], _artifact_path: str) -> None:
        """Remove the copy."""
        if version != "editable":
            self._place.cleanup()
