# Whether checkpoints outlive kills, failing calls, damage and rivals; one table of cases, problems and seconds.
#
#   tools/campaign failures [--size small|full] [INSTRUMENT...]
#
# INSTRUMENT: one of the tests of tests/failures (default: all). small is what every run of the tests does. What each
# printed is kept in BUILD/meson-logs/failures-NAME.txt. docs/failures.md tells what the instruments do.
set -euo pipefail

fuzzers=(fuzz_trailer fuzz_state_file fuzz_lock fuzz_idx)
all=(kill_points io_errors damage fall_back races power_cuts mpirun_kills "${fuzzers[@]}")
names=("$@")
[[ $# -gt 0 ]] || names=("${all[@]}")
for name in "${names[@]}"; do
  if [[ " ${all[*]} " != *" $name "* ]]; then
    echo "failures: there is no instrument '$name' (${all[*]})" >&2
    exit 64
  fi
done

[[ -f $BUILD/build.ninja ]] || meson setup "$BUILD" > /dev/null
ninja -C "$BUILD" | tail -1
# Only clang has a fuzzer; tools/test uses the same folder.
clang=build-clang
if [[ " ${names[*]} " == *" fuzz_"* ]]; then
  if [[ ! -f $clang/build.ninja ]]; then
    CXX=clang++ meson setup "$clang" -Dbuildtype=debugoptimized -Doptimization=1 -Db_sanitize=address,undefined \
      -Db_lundef=false -Db_ndebug=false -Dcpp_args=-fno-sanitize-recover=all > /dev/null
  fi
  ninja -C "$clang" "${fuzzers[@]/#/tests/failures/}" | tail -1
fi

run() {
  if [[ $1 == mpirun_kills ]]; then
    /usr/bin/python3 tests/failures/mpirun_kills.py "$BUILD"/apps/lockstep-{train,eval,inspect} \
      "$(realpath "$BUILD")/tests/failures/lockstep_faults.so" --size "$SIZE"
  elif [[ $1 == fuzz_* ]]; then
    /usr/bin/python3 tests/failures/fuzz/run_fuzzer.py "$clang/tests/failures/$1" --size "$SIZE"
  else
    "$BUILD/tests/failures/failures_$1" --size "$SIZE"
  fi
}

failed=0
printf '%-15s %10s %10s %8s\n' instrument cases problems seconds
for name in "${names[@]}"; do
  log=$BUILD/meson-logs/failures-$name.txt
  started=$EPOCHREALTIME
  verdict=ok
  status=0
  run "$name" > "$log" 2>&1 || status=$?
  if [[ $status -eq 77 ]]; then
    verdict="skipped, see $log"
  elif [[ $status -ne 0 ]]; then
    verdict="FAILED, see $log"
    failed=1
  fi
  read -r cases problems < <(sed -n 's/^\([0-9]*\) cases, \([0-9]*\) problems$/\1 \2/p' "$log") || cases=- problems=-
  seconds=$(((${EPOCHREALTIME/./} - ${started/./}) / 1000000))
  printf '%-15s %10s %10s %8s  %s\n' "$name" "$cases" "$problems" "$seconds" "$verdict"
done
exit $failed
