#!/bin/bash
# A job on 1,024 and 4,096 simulated ranks, the canonical sum between 1,024 nodes beside SMPI's own, and studies
#
# Small: 256 ranks. Full: 1,024 with the bits of two real ranks, 4,096 without gradients, the sums, and studies of 16 to
# 1,024 ranks whose law must tell what it has not seen. Their folders stay in $BUILD/scale.
set -euo pipefail
tools/install_packages simulation
[[ -f build-smpi/build.ninja ]] || CXX="ccache g++" meson setup build-smpi -Dmpi=smpi
ninja -C build-smpi
simulated=build-smpi/benchmarks/simulated
platforms=benchmarks/platforms
if [[ $SIZE == small ]]; then
  tests/simulated/ranks.py $simulated/simulated_job "$BUILD/benchmarks/real_job"
  $simulated/simulated_allreduce --platform $platforms/fat_tree.xml --ranks 64 4096 65536 1048576
  tests/simulated/study.py "$BUILD/apps/lockstep-scaling" $simulated/simulated_job
  exit
fi
tests/simulated/ranks.py $simulated/simulated_job "$BUILD/benchmarks/real_job" --sizes 16,64,256,1024
tests/simulated/study.py "$BUILD/apps/lockstep-scaling" $simulated/simulated_job --sizes 16,32,64,128,256,512,1024 \
  --seen 256 --out "$BUILD/scale"
$simulated/simulated_job --platform $platforms/fat_tree.xml --ranks 4096 --per_node 8 --micro_batches 4096 --steps 2 --zeros
for platform in fat_tree dragonfly; do
  for bytes in 4096 65536 1048576; do
    $simulated/simulated_allreduce --platform $platforms/$platform.xml --ranks 1024 "$bytes"
  done
done
