#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs both commands of the README, the demonstration and the tests, in bare systems of other releases. Not part of tests/run.sh: it
# downloads some hundred packages and builds everything once for each system.
#
#   tests/platforms.sh [--mirror URL] [--folder FOLDER] [--commands LIST] [SUITE...]
#
# SUITE     a release's code name, default: bookworm trixie sid. A system that is in FOLDER already is used again
# --mirror  where packages come from; default: the one in this machine's own list of sources. A suite of another distribution than this
#           machine's needs it: tests/platforms.sh --mirror URL noble
# --folder  where the systems are made, default: /var/tmp/pqkv_platforms, some 2 GB each; it must allow devices and programs
# --commands  which to run: demo, tests, all (tests/run.sh --all), compilers (tests/compile/every_compiler.sh),
#           cuda (Debian's own CUDA toolkit, from non-free: tests/cuda/architectures.sh sm_80 sm_90), separated by commas; default:
#           demo,tests
#
# The repository's last commit is what is tested, in a fresh clone in each system. Needs root and debootstrap. Prints a line for each
# command: suite, seconds, exit code and the last line; all of the output is in FOLDER/SUITE-COMMAND.log. Exits with 1 when one failed.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
folder=/var/tmp/pqkv_platforms
mirror=
commands=demo,tests
suites=()
usage() { sed -n '/^# *tests\/platforms/,/^set /{/^#/s/^# \{0,1\}//p}' "$0"; }
refuse() { echo "tests/platforms.sh: $*" >&2; exit 2; }

while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --mirror | --folder | --commands)
      [ $# -gt 1 ] || refuse "$1 needs a value"
      case $1 in --mirror) mirror=$2 ;; --folder) folder=$2 ;; *) commands=$2 ;; esac
      shift ;;
    -*) refuse "unknown option $1; --help lists them" ;;
    *) suites+=("$1") ;;
  esac
  shift
done
[ ${#suites[@]} -gt 0 ] || suites=(bookworm trixie sid)

command_for() {  # what a name in --commands runs
  case $1 in
    demo) echo ./examples/demo.sh ;;
    tests) echo ./tests/run.sh ;;
    all) echo "./tests/run.sh --all" ;;
    compilers) echo "./tests/compile/every_compiler.sh" ;;
    cuda)
      echo "sed -i 's/ main$/ main contrib non-free/' /etc/apt/sources.list && apt-get update &&
        DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends nvidia-cuda-toolkit nvidia-cuda-toolkit-gcc &&
        ./tests/cuda/architectures.sh sm_80 sm_90"
      ;;
    *) return 1 ;;
  esac
}
IFS=, read -ra commands <<<"$commands"
for name in "${commands[@]}"; do command_for "$name" >/dev/null || refuse "--commands: expected demo, tests, all, compilers or cuda, got $name"; done
[ "$(id -u)" -eq 0 ] || refuse "needs root, to make systems and to run in them"
command -v debootstrap >/dev/null || refuse "debootstrap is missing (Debian, Ubuntu: apt-get install debootstrap)"
git -C "$root" rev-parse -q --verify HEAD >/dev/null || refuse "$root is no git repository with a commit"

# The first source of packages of this machine's own release.
own_mirror() {
  local release files
  release=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
  files=$(ls /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null) || true
  awk -v release="$release" '
    $1 == "URIs:" { uri = $2 }
    $1 == "Suites:" && $2 == release && !found { print uri; found = 1 }
    $1 == "deb" && !found { at = $2 ~ /^\[/ ? 0 : 2
      for (i = 2; !at && i < NF; i++) if ($i ~ /\]$/) at = i + 1
      if ($(at + 1) == release) { print $at; found = 1 } }' $files
}
[ -n "$mirror" ] || mirror=$(own_mirror)
[ -n "$mirror" ] || refuse "this machine's list of sources names no mirror of its release: name one with --mirror"

make_system() {  # SUITE
  local script=() at=$folder/$1
  [ -e "$at/complete" ] && return
  rm -rf "$at"
  # A suite that is younger than this debootstrap is made as its distribution's newest that it knows.
  [ -e "/usr/share/debootstrap/scripts/$1" ] || case $mirror in *ubuntu*) script=(gutsy) ;; *) script=(sid) ;; esac
  debootstrap --variant=minbase "$1" "$at" "$mirror" "${script[@]}" >"$folder/$1-debootstrap.log" 2>&1 || return
  # What this machine's apt is told about proxies, and about mirrors whose dates have passed.
  apt-config dump 2>/dev/null | grep -E '^Acquire::(https?::Proxy|Check-Valid-Until|Check-Date) ' >"$at/etc/apt/apt.conf.d/90own" || true
  touch "$at/complete"
}

enter() {  # SUITE COMMAND: its mounts are seen by the command alone, and end with it
  unshare --mount --pid --fork bash -c '
    set -e
    mount --make-rprivate /
    mount -t proc proc "$1/proc"
    mkdir -p "$1/dev/shm"
    mount -t tmpfs tmpfs "$1/dev/shm"
    exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
      chroot "$1" bash -c "cd /pqkv && $2"' enter "$folder/$1" "$2"
}

mkdir -p "$folder"
failed=0
for suite in "${suites[@]}"; do
  if ! make_system "$suite"; then
    echo "$suite: not made: $(tail -n 1 "$folder/$suite-debootstrap.log")"
    failed=1
    continue
  fi
  rm -rf "$folder/$suite/pqkv"
  git clone -q --depth 1 "file://$root" "$folder/$suite/pqkv"
  for name in "${commands[@]}"; do
    start=$SECONDS rc=0
    enter "$suite" "$(command_for "$name")" </dev/null >"$folder/$suite-$name.log" 2>&1 || rc=$?
    [ $rc -eq 0 ] || failed=1
    echo "$suite: $name: $((SECONDS - start)) s, exit code $rc: $(grep -v '^ *$' "$folder/$suite-$name.log" | tail -n 1)"
  done
done
exit $failed
