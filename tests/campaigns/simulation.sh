# Whole jobs with faults, simulated from seeds: jobs, broken promises, jobs a second of one core.
#
#   tools/campaign simulation [--size small|full] [FIRST_SEED]
#
# small: 100,000 jobs, as every run of the tests; full: 1,000,000, some ten minutes of one core.
set -euo pipefail

[[ -f $BUILD/build.ninja ]] || meson setup "$BUILD" > /dev/null
ninja -C "$BUILD" tests/simulation/simulation_simulate | tail -1
jobs=100000
if [[ $SIZE == full ]]; then jobs=1000000; fi
"$BUILD"/tests/simulation/simulation_simulate --first "${1:-1}" --jobs $jobs
