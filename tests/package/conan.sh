#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes the Conan package as a user does and builds consumers on it: with CMakeToolchain, by the profile that `conan profile detect`
# writes, and with CMakeDeps alone. Versions and components are refused as CMake's own package refuses them. Then a package without the
# component cuda. Not a part of CI: it installs Conan from the package index, into a folder that goes away.
#
#   tests/package/conan.sh
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "conan: $*" >&2; exit 1; }
quietly() {  # WHAT COMMAND...: the command's output when it fails
  local what=$1
  shift
  "$@" >"$work/log" 2>&1 || { cat "$work/log"; fail "$what"; }
}

python3 -m venv "$work/venv"
quietly "cannot install Conan" "$work/venv/bin/pip" install --disable-pip-version-check conan==2.34.0
export CONAN_HOME=$work/home PATH=$work/venv/bin:$PATH
quietly "no profile" conan profile detect
echo "conan: $(conan --version), $(grep compiler.cppstd= "$CONAN_HOME/profiles/default")"

# The tree as it stands, without build folders; the test package is built in it.
mkdir "$work/source"
(cd "$root" && tar c --exclude ./build --exclude ./.git .) | tar x -C "$work/source"
quietly "conan create" conan create "$work/source"
echo "conan: created, with the test package built and run"
version=$(conan inspect "$work/source" --format json | python3 -c 'import json, sys; print(json.load(sys.stdin)["version"])')

quietly "conan install" conan install --requires="pqkv/$version" -g CMakeDeps -of "$work/generated"
plain=(-DCMAKE_PREFIX_PATH="$work/generated" -DCMAKE_BUILD_TYPE=Release)
quietly "a consumer without CMakeToolchain does not configure" cmake -S "$here/conan" -B "$work/plain" "${plain[@]}"
quietly "a consumer without CMakeToolchain does not build" cmake --build "$work/plain"
"$work/plain/consumer" || fail "a consumer without CMakeToolchain fails"
echo "conan: consumer without CMakeToolchain: built, run"

# Against an installation by CMake: the same requests are taken, and the same are refused.
quietly "configure" cmake -S "$work/source" -B "$work/cmake" -DPQKV_BUILD_TESTS=OFF -DPQKV_BUILD_BENCH=OFF -DPQKV_BUILD_EXAMPLES=OFF
quietly "install" cmake --install "$work/cmake" --prefix "$work/prefix"
asked() { cmake -S "$here/refused" -B "$work/asked" --fresh "$@" >"$work/log" 2>&1 && echo taken || echo refused; }
same() {  # EXPECTED ARGUMENTS...
  local expected=$1 by_cmake by_conan
  shift
  by_cmake=$(asked -DCMAKE_PREFIX_PATH="$work/prefix" "$@") by_conan=$(asked "${plain[@]}" "$@")
  [ "$by_cmake $by_conan" = "$expected $expected" ] || { cat "$work/log"; fail "$*: $by_cmake by CMake's package, $by_conan by Conan's"; }
  echo "conan: $*: $expected"
}
for taken in 0.1 0.1.0 0.1...0.1.9 "0.1...<0.2"; do same taken "-DWANTED_VERSION=$taken"; done
for refused in 0.0 0.2 9 0.1...0.5 0.0...0.1 "0.1...<0.3"; do same refused "-DWANTED_VERSION=$refused"; done
same taken -DWANTED_COMPONENT=host
same refused -DWANTED_COMPONENT=metal
tr -s ' \n' ' ' <"$work/log" | grep -qF "there is no component 'metal'" || { cat "$work/log"; fail "component metal: refused without its name"; }
same refused -DWANTED_COMPONENT=cuda -DCMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit=ON
tr -s ' \n' ' ' <"$work/log" | grep -qF "component 'cuda' needs the CUDA toolkit" || { cat "$work/log"; fail "component cuda: no sentence"; }

# With a toolkit there is a target.
if toolkit=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null); then
  same taken -DWANTED_COMPONENT=cuda -DWANTED_TARGET=pqkv::cuda -DCUDAToolkit_ROOT="$(dirname "$(dirname "$toolkit")")"
else
  echo "conan: component cuda with a toolkit: no nvcc found, left out"
fi

# A package without the component says so, and has pqkv::pqkv all the same.
quietly "conan create without CUDA" conan create "$work/source" -o "pqkv/*:with_cuda=False" --test-folder=""
quietly "conan install without CUDA" conan install --requires="pqkv/$version" -o "pqkv/*:with_cuda=False" -g CMakeDeps -of "$work/without"
without=(-DCMAKE_PREFIX_PATH="$work/without" -DCMAKE_BUILD_TYPE=Release)
[ "$(asked "${without[@]}" -DWANTED_COMPONENT=host)" = taken ] || { cat "$work/log"; fail "with_cuda=False: no pqkv::pqkv"; }
[ "$(asked "${without[@]}" -DWANTED_COMPONENT=cuda)" = refused ] || { cat "$work/log"; fail "with_cuda=False: component cuda was found"; }
tr -s ' \n' ' ' <"$work/log" | grep -qF "component 'cuda' was left out when this package was made" ||
  { cat "$work/log"; fail "with_cuda=False: component cuda is refused without a sentence"; }
echo "conan: with_cuda=False: component cuda is refused, pqkv::pqkv is there"
