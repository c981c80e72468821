# SPDX-License-Identifier: Apache-2.0
"""What tests of the scripts that run minillama share: a folder, and in it a program that stands in for minillama."""
import pathlib
import sys
import tempfile
import unittest


class with_stand_in(unittest.TestCase):
    """Begins with self.folder, and self.program made of the class's `stand_in`, in which {python} is this Python."""
    stand_in = ""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.program = self.folder / "minillama"
        self.program.write_text(self.stand_in.replace("{python}", sys.executable))
        self.program.chmod(0o755)
