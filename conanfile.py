# SPDX-License-Identifier: Apache-2.0
# Conan 2 recipe: packages the headers, and what a CMake consumer of them needs. `conan create .`
# Option with_cuda: whether the package has the component cuda (pqkv::cuda). The CUDA toolkit is found by the consumer, not by Conan.
import os
import re

from conan import ConanFile
from conan.errors import ConanInvalidConfiguration
from conan.tools.files import copy, load
from conan.tools.scm import Version

least_compilers = {"gcc": "12", "clang": "14"}  # whose C++20 is enough


class pqkv_recipe(ConanFile):
    name = "pqkv"
    description = "Quantized KV retrieval for long contexts, header-only C++20"
    license = "Apache-2.0"
    author = "The authors of pqkv"
    topics = ("llm", "attention", "kv-cache", "product-quantization", "vector-search", "cuda", "header-only")
    package_type = "header-library"
    settings = "os", "arch", "compiler", "build_type"
    options = {"with_cuda": [True, False]}
    default_options = {"with_cuda": True}
    exports = "include/pqkv/version.hpp"
    exports_sources = ("include/*", "LICENSE", "cmake/pqkvComponents.cmake", "cmake/pqkvCompiled.cmake", "cmake/compiled/*",
                       "cmake/conan/*")
    no_copy_source = True
    test_package_folder = "tests/package/conan"

    def set_version(self):
        text = load(self, os.path.join(self.recipe_folder, "include", "pqkv", "version.hpp"))
        self.version = ".".join(re.findall(r"version_(?:major|minor|patch) = (\d+);", text))

    def validate(self):
        # The compiler, not compiler.cppstd: a detected profile names the compiler's default, which is older, and the target asks for
        # C++20 of whoever links it.
        name, version = str(self.settings.compiler), str(self.settings.compiler.version)
        if name in least_compilers and Version(version) < least_compilers[name]:
            raise ConanInvalidConfiguration(f"pqkv needs {name} {least_compilers[name]} or later, got {version}")

    def package_id(self):
        self.info.settings.clear()  # headers are the same for all; what stays is with_cuda

    def package(self):
        copy(self, "LICENSE", self.source_folder, os.path.join(self.package_folder, "licenses"))
        copy(self, "*", os.path.join(self.source_folder, "include"), os.path.join(self.package_folder, "include"))
        left_out = () if self.options.with_cuda else ("*pqkvCudaTarget.cmake",)
        copy(self, "*.cmake", os.path.join(self.source_folder, "cmake"), os.path.join(self.package_folder, "cmake"), excludes=left_out,
             keep_path=False)
        copy(self, "*.cpp", os.path.join(self.source_folder, "cmake", "compiled"), os.path.join(self.package_folder, "cmake", "compiled"))

    def package_info(self):
        self.cpp_info.bindirs = []
        self.cpp_info.libdirs = []
        self.cpp_info.set_property("cmake_file_name", "pqkv")
        self.cpp_info.set_property("cmake_target_name", "pqkv::pqkv")
        self.cpp_info.set_property("cmake_config_version_compat", "SameMinorVersion")
        self.cpp_info.set_property("cmake_build_modules", [os.path.join("cmake", "pqkvConan.cmake")])
