# Kills of one rank or of the launcher at random moments of short runs: hangs, damage, wrong digests, seconds to the end.
#
#   tools/campaign kills [--size small|full]
#
# small: 40 kills, as every run of the tests; full: 1,000, about 30 minutes on two cores. LOCKSTEP_TEST_SEED chooses others.
set -euo pipefail

[[ -f $BUILD/build.ninja ]] || meson setup "$BUILD" > /dev/null
ninja -C "$BUILD" apps/lockstep-train apps/lockstep-eval apps/lockstep-inspect | tail -1
kills=40
if [[ $SIZE == full ]]; then kills=1000; fi
LOCKSTEP_KILLS=$kills python3 tests/failures/rank_kills_test.py "$BUILD"/apps/lockstep-{train,eval,inspect}
