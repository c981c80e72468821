# SPDX-License-Identifier: Apache-2.0
# Sourced by gpu.sh and gpu_scale.sh, for --programs DIR: compiled programs are kept in $programs, and taken from there; where that is empty,
# nothing is kept. Needs refuse() of the script.

made_folder() {  # FOLDER or nothing; prints its whole path
  [ -n "$1" ] || return 0
  mkdir -p "$1" || refuse "$1: cannot be made" 1
  (cd "$1" && pwd)
}
check_programs() {  # ARCHITECTURE; in the root of the repository. Refuses programs of other sources
  local made_from
  [ -n "$programs" ] || return 0
  made_from="$1 $(find include tests bench examples/two_processes -name '*.hpp' -o -name '*.cuh' -o -name '*.cu' | LC_ALL=C sort | xargs cat | sha256sum | cut -d' ' -f1)"
  if [ -e "$programs/made_from" ] && [ "$(cat "$programs/made_from")" != "$made_from" ]; then
    refuse "$programs: its programs were made from other sources, or for another architecture than $1; give an empty folder" 1
  fi
  echo "$made_from" >"$programs/made_from"
}
take_program() {  # PROGRAM FILE; fails where it is not kept
  [ -n "$programs" ] && [ -x "$programs/$1" ] && cp "$programs/$1" "$2"
}
keep_program() {  # PROGRAM FILE
  if [ -n "$programs" ]; then cp "$2" "$programs/$1.part" && mv "$programs/$1.part" "$programs/$1"; fi
}
export -f take_program keep_program

# Looks for NCCL in PQKV_NCCL, python3's nvidia.nccl, /usr/local, /usr, and beside nvcc: sets nccl, the folder with include/, nccl_library,
# nccl_flags for the compiler, and nccl_path, an LD_LIBRARY_PATH, since programs may come from a machine with NCCL elsewhere. Fails where
# there is none, with nccl empty if there is no nccl.h.
find_nccl() {
  local root of_python
  nccl='' nccl_library='' nccl_path='' nccl_flags=()
  of_python=$(python3 -c 'import nvidia.nccl as n; print(list(n.__path__)[0])' 2>/dev/null || true)
  for root in "${PQKV_NCCL:-}" "$of_python" /usr/local /usr "$(dirname "$(dirname "$(readlink -f "$nvcc")")")"; do
    if [ -n "$root" ] && [ -f "$root/include/nccl.h" ]; then nccl=$root; break; fi
  done
  [ -n "$nccl" ] || return 1
  nccl_library=$(ls "$nccl"/lib/libnccl.so* "$nccl"/lib64/libnccl.so* "$nccl"/lib/*/libnccl.so* 2>/dev/null | head -n 1 || true)
  [ -n "$nccl_library" ] || return 1
  nccl_flags=(-Xlinker "$nccl_library")
  if [ "$nccl" != /usr ]; then nccl_flags+=(-isystem "$nccl/include"); fi  # g++ finds its own headers no more if /usr/include comes first
  nccl_path="$(dirname "$nccl_library")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
}
