#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs pqkv from a configured build folder into a temporary prefix and builds consumers on it, examples/engine among them; then one
# by pkg-config of a moved installation, one of what vcpkg's port installs, and the two that take the source in, as a subdirectory and
# from a git repository. Each consumer's programs are run. What cpack makes is compared with the installation.
#
#   tests/package/run.sh BUILD_DIR
set -euo pipefail
build=$(cd "$1" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "package: $*" >&2; exit 1; }

configure() {  # NAME [cmake arguments]: quiet unless it fails
  local name=$1 source=$here/$1 type=Debug flags=-O0  # it must build and link: fastest without optimisation and without -g
  shift
  [ "$name" != engine ] || source=$root/examples/engine
  [ "$name" != engine ] || flags=-O1  # it computes
  cmake -S "$source" -B "$work/$name" -DCMAKE_BUILD_TYPE="$type" -DCMAKE_CXX_FLAGS_DEBUG="$flags" -DCMAKE_CUDA_FLAGS_DEBUG=-O0 "$@" \
    >"$work/log" 2>&1 || { cat "$work/log"; fail "$name: does not configure"; }
}

build_and_run() {  # NAME PROGRAM...
  local name=$1
  shift
  cmake --build "$work/$name" >"$work/log" 2>&1 || { cat "$work/log"; fail "$name: does not build"; }
  for program in "$@"; do
    "$work/$name/$program" || fail "$name: $program failed"
  done
  echo "package: $name: built, ran $*"
}

refused() {  # WHAT SENTENCE [cmake arguments]: configuring must fail and say SENTENCE, line breaks aside
  local what=$1 sentence=$2
  shift 2
  rm -rf "$work/refused"
  if cmake -S "$here/refused" -B "$work/refused" -DCMAKE_PREFIX_PATH="$work/prefix" "$@" >"$work/log" 2>&1; then
    fail "$what was accepted"
  fi
  tr -s ' \n' ' ' <"$work/log" | grep -qF -- "$sentence" || { cat "$work/log"; fail "$what: refused without \"$sentence\""; }
  echo "package: $what: refused"
}

cmake --install "$build" --prefix "$work/prefix" >"$work/log" || { cat "$work/log"; fail "does not install"; }
[ "$(find "$work/prefix/include" -name '*.hpp' | wc -l)" -eq "$(find "$root/include" -name '*.hpp' | wc -l)" ] || fail "not every header is installed"
if grep -rnE "(^|[^[:alnum:]_./-])$root/(include|cmake|tests|build)/" "$work/prefix"; then fail "an installed file names the source tree"; fi

version=$(sed -nE 's/^set\(PACKAGE_VERSION "([0-9.]+)"\)$/\1/p' "$work/prefix/share/cmake/pqkv/pqkvConfigVersion.cmake")
configure installed -DCMAKE_PREFIX_PATH="$work/prefix" -DWANTED_VERSION="${version%.*}"
build_and_run installed consumer consumer_compiled consumer_without_exceptions error_handler

# The toy engine holds its outputs against dense attention, whatever the number of threads; bad settings are one line and nothing else.
configure engine -DCMAKE_PREFIX_PATH="$work/prefix"
build_and_run engine toy_engine
one=$("$work/engine/toy_engine" --threads 1 | tail -n +2) three=$("$work/engine/toy_engine" --threads 3 | tail -n +2)
[ "$one" = "$three" ] || fail "engine: results depend on the number of threads: '$one' and '$three'"
engine_refuses() {  # SENTENCE ARGUMENTS...
  local sentence=$1 rc=0
  shift
  "$work/engine/toy_engine" "$@" >"$work/out" 2>"$work/err" || rc=$?
  [ "$rc" -eq 2 ] && [ ! -s "$work/out" ] && [ "$(wc -l <"$work/err")" -eq 1 ] && grep -qF -- "$sentence" "$work/err" ||
    { cat "$work/out" "$work/err"; fail "engine: $*: code $rc"; }
}
engine_refuses "head_dim must be a multiple of 8, got 20" --head-dim 20
engine_refuses "usage: toy_engine" --steps
echo "package: engine: refuses bad settings"

refused "version 9" 'compatible with requested version "9"' -DWANTED_VERSION=9
refused "version 0.0" 'compatible with requested version "0.0"' -DWANTED_VERSION=0.0
refused "component cuda without a toolkit" "component 'cuda' needs the CUDA toolkit" -DWANTED_COMPONENT=cuda -DCMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit=ON
if nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null); then
  configure cuda -DCMAKE_PREFIX_PATH="$work/prefix" -DCMAKE_CUDA_COMPILER="$nvcc" -DCMAKE_CUDA_ARCHITECTURES=90
  build_and_run cuda cuda_consumer
else
  echo "package: cuda: no nvcc found, left out"
fi
refused "an unknown component" "there is no component 'metal'" -DWANTED_COMPONENT=metal

# Where DESTDIR puts it is not where it was configured for.
DESTDIR=$work/stage cmake --install "$build" --prefix /opt/pqkv >"$work/log" || { cat "$work/log"; fail "does not install with DESTDIR"; }
if command -v pkg-config >/dev/null; then
  export PKG_CONFIG_PATH=$work/stage/opt/pqkv/share/pkgconfig
  [ "$(pkg-config --modversion pqkv)" = "$version" ] || fail "pkg-config: version $(pkg-config --modversion pqkv), not $version"
  read -ra flags <<<"$(pkg-config --cflags --libs pqkv)"
  printf '#include <pqkv/search/top_k.hpp>\n#include <pqkv/version.hpp>\nint main() { return pqkv::version_major; }\n' >"$work/by_pkg_config.cpp"
  "${CXX:-c++}" -std=c++20 "${flags[@]}" "$work/by_pkg_config.cpp" -o "$work/by_pkg_config" && "$work/by_pkg_config" || fail "pkg-config: ${flags[*]}"
  echo "package: pkg-config: built with ${flags[*]/$work/WORK}"
else
  echo "package: pkg-config: not found, left out"
fi

# cpack's archive and Debian package hold what an installation does, the latter with its licence where Debian looks for it.
cpack --config "$build/CPackConfig.cmake" -G "TGZ;DEB" -B "$work/cpack" >"$work/log" 2>&1 || { cat "$work/log"; fail "cpack"; }
tar xzf "$work/cpack/pqkv-$version.tar.gz" -C "$work/cpack"
diff -r "$work/prefix" "$work/cpack/pqkv-$version" || fail "cpack: the archive is not what is installed"
debian=$work/cpack/libpqkv-dev_${version}_all.deb
[ -f "$debian" ] || fail "cpack: no $debian"
if command -v dpkg-deb >/dev/null; then
  dpkg-deb -x "$debian" "$work/debian"
  cmp -s "$root/LICENSE" "$work/debian/usr/share/doc/libpqkv-dev/copyright" || fail "cpack: the Debian package has no copyright"
  rm -r "$work/debian/usr/share/doc"
  diff -r "$work/prefix" "$work/debian/usr" || fail "cpack: the Debian package is not what is installed"
  echo "package: cpack: an archive, $(dpkg-deb --show --showformat='${Package} ${Version} ${Architecture}' "$debian")"
else
  echo "package: cpack: no dpkg-deb, the Debian package was not opened"
fi

# A tag's archive has the tracked files alone, and no .git. What it installs is the same.
if git -C "$root" ls-files --error-unmatch CMakeLists.txt >/dev/null 2>&1; then
  mkdir "$work/archive"
  (cd "$root" && git ls-files -z | tar c --null -T -) | tar x -C "$work/archive"
  cmake -S "$work/archive" -B "$work/archive/build" -DPQKV_BUILD_TESTS=OFF -DPQKV_BUILD_BENCH=OFF -DPQKV_BUILD_EXAMPLES=OFF >"$work/log" 2>&1 &&
    cmake --install "$work/archive/build" --prefix "$work/archive/prefix" >"$work/log" 2>&1 || { cat "$work/log"; fail "a tag's archive does not install"; }
  diff -r "$work/prefix" "$work/archive/prefix" || fail "a tag's archive installs something else"
  echo "package: archive of the tracked files: installs the same"
else
  echo "package: archive: no git repository, left out"
fi

install_port() {  # FEATURES
  cmake -DPORT="$root/ports/pqkv" -DWORK="$work/vcpkg" -DFEATURES="$1" -P "$here/vcpkg/install_port.cmake" >"$work/log" 2>&1 ||
    { cat "$work/log"; fail "vcpkg: the port does not install with features $1"; }
}
install_port core
refused "component cuda of a port without that feature" "component 'cuda' was left out when this package was made" \
  -DWANTED_COMPONENT=cuda -DCMAKE_PREFIX_PATH="$work/vcpkg/packages"
install_port "core;cuda"
rm -rf "$work/installed"
configure installed -DCMAKE_PREFIX_PATH="$work/vcpkg/packages" -DWANTED_VERSION="${version%.*}"
grep -q "pqkv_DIR:PATH=$work/vcpkg/packages/share/pqkv" "$work/installed/CMakeCache.txt" || fail "vcpkg: another installation was found"
cmake --build "$work/installed" --target one_operation >"$work/log" 2>&1 && "$work/installed/one_operation" || { cat "$work/log"; fail "vcpkg: no consumer"; }
echo "package: vcpkg: the port installs, a consumer runs"
if [ -n "$nvcc" ]; then
  rm -rf "$work/cuda"
  configure cuda -DCMAKE_PREFIX_PATH="$work/vcpkg/packages" -DCMAKE_CUDA_COMPILER="$nvcc" -DCMAKE_CUDA_ARCHITECTURES=90
  echo "package: vcpkg: component cuda is found with its feature"
fi

configure subdirectory -DPQKV_SOURCE="$root"
build_and_run subdirectory one_operation
configure exporting -DPQKV_SOURCE="$root"
echo "package: exporting: an installed library names pqkv"
mkdir "$work/repository"  # of the tree as it stands, committed or not
cp -r "$root/CMakeLists.txt" "$root/LICENSE" "$root/cmake" "$root/include" "$work/repository"
in_repository() { git -C "$work/repository" -c user.name=consumer -c user.email=consumer@example.org "$@"; }
{ in_repository init -q && in_repository add . && in_repository commit -q -m "pqkv"; } >"$work/log" 2>&1 || { cat "$work/log"; fail "no repository"; }
configure fetch_content -DURL="file://$work/repository" -DCOMMIT="$(in_repository rev-parse HEAD)" -DCMAKE_DISABLE_FIND_PACKAGE_pqkv=ON
build_and_run fetch_content consumer
