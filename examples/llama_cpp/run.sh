#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# pqkv in an unpatched llama.cpp, from nothing: fetches the source that the PyPI package llama-cpp-python vendors, builds and installs its
# libllama for this machine's CPU, builds this folder's program, gets SmolLM2-135M (examples/models) and talks about a long text.
#
#   examples/llama_cpp/run.sh                    a question about a long text, then a second one, a tenth of the tokens attended
#   examples/llama_cpp/run.sh --prepare          builds; prints the program and the model, each on a line
#   examples/llama_cpp/run.sh --compare          200 greedy tokens beside unmodified llama.cpp's, everything attended; also with the
#                                                model's weights as floats, where nothing but the attention rounds
#   examples/llama_cpp/run.sh --bench N,N,...    decode speed after prompts of N tokens, the two taking turns
#   examples/llama_cpp/run.sh --quality N,N,...  answers about numbers in a text of N tokens, and perplexity of what follows, by policy
#   examples/llama_cpp/run.sh --check            copies, places to go back to, sessions, steps of several sequences
#   examples/llama_cpp/run.sh --gemma ...        any of these with Gemma 3 270M, a base model: it continues a text
#   examples/llama_cpp/run.sh --without-gqa ...  any of these with SmolLM2 where every query head has a copy of its KV head
#
# What follows is handed to the program: --bench 4096 --ratio 0.2. Everything lies in the cache folder of examples/models (PQKV_MODELS);
# CXX and CC name other compilers. The first time takes 10 minutes and 1 GB on two cores, most of it llama.cpp's own build.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
case ${1:-} in
  -h | --help) sed -n '3,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 0 ;;
esac

# The scripts in there lock the folder, so this one comes first.
name=smollm2-135m-instruct grouped=
case ${1:-} in
  --gemma)
    shift
    name=gemma3-270m
    model=$("$root/examples/models/gemma3.sh")
    ;;
  *) model=$("$root/examples/models/smollm2.sh").gguf ;;
esac
if [ "${1:-}" = --without-gqa ]; then
  shift
  name=smollm2-135m-without-gqa grouped=$model
fi
# shellcheck source-path=SCRIPTDIR source=../models/package_cache.sh
. "$root/examples/models/package_cache.sh"

package=llama-cpp-python==0.3.36
package_sha256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
unpacked=llama_cpp_python-0.3.36
installed=$cache/llama.cpp-0.3.36
program=$cache/llama_pqkv
CXX=${CXX:-g++} CC=${CC:-gcc}
export CXX CC
for tool in cmake "$CXX" "$CC"; do
  command -v "$tool" >/dev/null || fail 1 "$tool is missing (Debian, Ubuntu: apt-get install cmake g++ python3-venv)"
done

# Flags that llama.cpp's native build needs on some machines (docs/engines.md says why): without the first two, g++ 12 makes code that dies
# where the CPU has AMX; without the third, attention with heads of 64 runs in scalar code where the CPU has AVX512-FP16.
flags=() without=()
for flag in -fno-tree-dse -fno-dse -mno-avx512fp16; do
  if printf '' | "$CXX" -Werror "$flag" -x c++ -fsyntax-only - 2>/dev/null; then flags+=("$flag"); fi
done

open_cache
stamp="$package $package_sha256 ${flags[*]} $("$CXX" -dumpfullversion -dumpversion) $(uname -m)"
if [ "$(cat "$installed/.made-from" 2>/dev/null)" != "$stamp" ]; then
  need_space 1000
  environment convert "${conversion_packages[@]}"
  say "fetching $package"
  printf '%s --hash=sha256:%s\n' "$package" "$package_sha256" >"$scratch/wanted"
  "$python" -m pip download --quiet --no-cache-dir --no-deps --no-binary :all: --dest "$scratch" --require-hashes \
    --requirement "$scratch/wanted" >&2 || fail 1 "pip could not fetch $package, see above (no network?)"
  tar -xzf "$scratch/$unpacked.tar.gz" -C "$scratch"
  say "building llama.cpp (${flags[*]:-no further flags}); its output is in $cache/llama.cpp.log"
  for optional in COMMON TESTS TOOLS EXAMPLES SERVER APP UI; do without+=("-DLLAMA_BUILD_$optional=OFF"); done
  # Its libllama does not say where its libggml is; the origin does.
  {
    cmake -S "$scratch/$unpacked/vendor/llama.cpp" -B "$scratch/build" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_OPENSSL=OFF \
      "${without[@]}" -DCMAKE_C_FLAGS="${flags[*]}" -DCMAKE_CXX_FLAGS="${flags[*]}" "-DCMAKE_INSTALL_RPATH=\$ORIGIN" \
      -DCMAKE_INSTALL_PREFIX="$installed" &&
      cmake --build "$scratch/build" --parallel "$(nproc)" && rm -rf "$installed" && cmake --install "$scratch/build"
  } >"$cache/llama.cpp.log" 2>&1 || fail 1 "llama.cpp could not be built, see $cache/llama.cpp.log"
  printf '%s\n' "$stamp" >"$installed/.made-from"
fi
if [ -n "$grouped" ]; then
  model=$cache/$name.gguf
  if [ ! "$model" -nt "$root/examples/models/without_gqa.py" ]; then
    need_space 200
    environment convert "${conversion_packages[@]}"
    "$python" "$root/examples/models/without_gqa.py" "$grouped" "$scratch/without_gqa" && mv "$scratch/without_gqa" "$model"
  fi
fi
say "building llama_pqkv"
fresh=()  # the folder may be another checkout's
grep -qsxF "CMAKE_HOME_DIRECTORY:INTERNAL=$here" "$program/CMakeCache.txt" || fresh=(--fresh)
{
  cmake "${fresh[@]}" -S "$here" -B "$program" -DCMAKE_PREFIX_PATH="$installed" && cmake --build "$program"
} >"$cache/llama_pqkv.log" 2>&1 || fail 1 "llama_pqkv could not be built, see $cache/llama_pqkv.log"
exec 9>&-  # other scripts may work in the cache again

text=$scratch/text
cat "$root"/docs/{dataflow,integrating,layouts}.md >"$scratch/pages"
# A fact in the middle of the pages, which nothing else in them tells.
lines=$(wc -l <"$scratch/pages")
head -n $((lines / 3)) "$scratch/pages" >"$scratch/first"
tail -n +$((lines / 3)) "$scratch/pages" >"$scratch/second"
{
  head -c 9000 "$scratch/first"
  printf '\n\nThe lighthouse keeper of Arnholm is called Benedikta, and her dog is called Marzipan.\n\n'
  head -c 12000 "$scratch/second"
} >"$text"

raw=()  # a base model has no chat template
if [ "$name" = gemma3-270m ]; then raw=(--raw); fi
refused() {  # EXIT-CODE WHAT-IT-SAYS OPTION...: what cannot work ends in one line that says why
  local code=0 wanted=$1 says=$2
  shift 2
  "$program/llama_pqkv" -m "$model" -f "$scratch/short" -p "Summarize the text." -n 8 "${raw[@]}" "$@" >"$scratch/out" 2>"$scratch/err" || code=$?
  if [ "$code" = "$wanted" ] && grep -q -- "$says" "$scratch/err" && [ "$(grep -c '^llama_pqkv: ' "$scratch/err")" = 1 ]; then
    printf 'ok      refused: %s\n' "$(sed -n 's/^llama_pqkv: //p' "$scratch/err" | cut -c1-100)"
  else
    printf 'WRONG   %s: exit code %s, expected %s and "%s"\n' "$*" "$code" "$wanted" "$says"
    cat "$scratch/err"
    wrong=4
  fi
}
stopped() {  # WHEN OPTION...
  local code=0 when=$1
  shift
  timeout --preserve-status -s INT 3 "$program/llama_pqkv" -m "$model" "$@" >/dev/null 2>&1 || code=$?
  if [ "$code" = 130 ] && ! ls "$scratch"/session* >/dev/null 2>&1; then
    printf 'ok      Ctrl-C %s: exit code 130, no session file\n' "$when"
  else
    printf 'WRONG   Ctrl-C %s: exit code %s, %s\n' "$when" "$code" "$(ls "$scratch" | tr '\n' ' ')"
    wrong=4
  fi
}
check_refusals() {
  wrong=0
  head -c 6000 "$text" >"$scratch/short"
  printf 'no model\n' >"$scratch/no.gguf"
  printf 'no session\n' >"$scratch/no.session"
  refused 1 "that the model was trained for" -c 1000000
  refused 1 "more do not fit" -c 256
  refused 1 "reads llama.cpp's cache as f16" --cache-type q8_0
  refused 1 "flash attention, which is off" --no-flash
  refused 2 "-t takes a number from 1 to" -t 100000
  refused 2 "--ratio takes a number from" --ratio 2
  refused 1 "cannot load the model" -m "$scratch/no.gguf"
  refused 1 "was not written by this program\|ends early" --session "$scratch/no.session"
  refused 1 "cannot be written" --session "$scratch/no/folder"
  refused 1 "cannot read" -f "$scratch/no.text"
  # Ctrl-C: a code of its own, and no session that is half written.
  head -c 20000 "$text" >"$scratch/long"
  stopped "while a prompt is read" -f "$scratch/long" -p x "${raw[@]}" --session "$scratch/session"
  stopped "while it answers" -p "Once upon a time" --raw -n 4000
  "$program/llama_pqkv" -m "$model" -f "$scratch/short" -p x --raw -n 1 --session "$scratch/session" >/dev/null 2>&1
  printf '\001' | dd of="$scratch/session" bs=1 seek=200 conv=notrunc status=none
  refused 1 "is damaged" -p x --raw --session "$scratch/session"
  return $wrong
}

case ${1:-} in
  --prepare)
    printf '%s\n%s\n' "$program/llama_pqkv" "$model"
    ;;
  --compare)
    shift
    head -c 6000 "$text" >"$scratch/short"
    floats=$cache/$name-f32.gguf
    if [ ! -f "$floats" ]; then
      need_space 1200
      "$program/llama_pqkv" -m "$model" --write-f32 "$scratch/floats" >&2 && mv "$scratch/floats" "$floats"
    fi
    for weights in "$floats" "$model"; do
      for prompt in "" "$scratch/short"; do
        printf '\n%s, %s prompt\n' "$(basename "$weights")" "$([ -z "$prompt" ] && echo short || echo longer)"
        asked=(-p "Write a short story about a lighthouse.")
        [ -z "$prompt" ] || asked=(-f "$prompt" -p "Summarize the text above.")
        different=0
        "$program/llama_pqkv" -m "$weights" "${asked[@]}" -n 200 --policy full --compare "$@" || different=$?
        [ "$different" = 0 ] || [ "$different" = 3 ] || exit "$different"
      done
    done
    ;;
  --bench | --quality | --check)
    cat "$root"/docs/{dataflow,integrating,layouts,quality,backends,faq,policies,numerics,scale,memory,errors}.md >"$text"
    "$program/llama_pqkv" -m "$model" -f "$text" "$@"
    [ "$1" != --check ] || check_refusals
    ;;
  *)
    if [ "$name" = gemma3-270m ]; then
      "$program/llama_pqkv" -m "$model" -f "$text" -p "The lighthouse keeper of Arnholm is called" -n 40 --raw "$@"
      exit
    fi
    printf 'And what is her dog called?\n' | "$program/llama_pqkv" -m "$model" -f "$text" \
      -p "What is the lighthouse keeper of Arnholm called? Answer in one sentence." -n 60 --chat "$@"
    ;;
esac
