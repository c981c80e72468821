#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs the packages that are missing for a purpose, on Debian 12 and later and its kin. Calls apt only when something is missing,
# with sudo when not root. Elsewhere it names what to install.
#
#   cmake/install_deps.sh demo | test | all
set -euo pipefail

demo=(g++ cmake ninja-build libeigen3-dev nlohmann-json3-dev libcli11-dev libpcre2-dev)
test=("${demo[@]}" doctest-dev libbenchmark-dev libopenmpi-dev openmpi-bin python3 git doxygen pkgconf clang libclang-rt-dev)
case ${1:-} in
  demo) wanted=("${demo[@]}") ;;
  test) wanted=("${test[@]}") ;;
  all) wanted=("${test[@]}" clang-19 g++-aarch64-linux-gnu qemu-user-static) ;;
  *) echo "usage: $0 demo | test | all" >&2; exit 2 ;;
esac

# A tool counts as present when it can be called, a library when its package, or its header in a usual place, is there.
present() {
  case $1 in
    ninja-build) command -v ninja ;;
    clang) command -v clang++ || command -v clang++-{14..22} ;;
    libclang-rt-dev) compgen -G "/usr/lib/llvm-*/lib/clang/*/lib/*/libclang_rt.asan*" ;;
    pkgconf) command -v pkg-config ;;
    clang-19) command -v clang++-19 ;;
    g++-aarch64-linux-gnu) command -v aarch64-linux-gnu-g++ ;;
    qemu-user-static) command -v qemu-aarch64-static ;;
    libopenmpi-dev) command -v mpicxx ;;
    openmpi-bin) command -v mpirun ;;
    g++ | cmake | python3 | git | doxygen) command -v "$1" ;;
    libeigen3-dev) header eigen3/Eigen/Core ;;
    nlohmann-json3-dev) header nlohmann/json.hpp ;;
    libcli11-dev) header CLI/CLI.hpp ;;
    libpcre2-dev) header pcre2.h ;;
    doctest-dev) header doctest/doctest.h ;;
    libbenchmark-dev) header benchmark/benchmark.h ;;
  esac >/dev/null
}
header() { [ -e "/usr/include/$1" ] || [ -e "/usr/local/include/$1" ]; }

missing=()
for package in "${wanted[@]}"; do present "$package" || missing+=("$package"); done
[ ${#missing[@]} -gt 0 ] || exit 0

if ! command -v apt-get >/dev/null; then
  echo "install_deps: no apt-get here; please install what Debian calls: ${missing[*]}" >&2
  exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { echo "install_deps: needs root or sudo to install: ${missing[*]}" >&2; exit 1; }
  as_root=(sudo)
fi
echo "install_deps: installing ${missing[*]}" >&2
"${as_root[@]}" apt-get update -q >&2
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}" >&2
