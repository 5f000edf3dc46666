# What the batch scripts share: checks of their settings, and how ranks are started. Sourced; no job of its own.
# shellcheck shell=bash

say() { printf '%s: %s\n' "${SLURM_JOB_NAME:-slurm}" "$*" >&2; }

# Something is wrong with the settings: nothing is started.
stop() {
  say "$*"
  exit 64
}

# Stops unless each named setting has a value.
need() {
  local name
  for name; do
    [[ -n ${!name:-} ]] || stop "$name is empty; give it a value (see the top of the script)"
  done
}

# Stops unless each named setting is a whole number.
need_number() {
  local name
  for name; do
    [[ ${!name:-} =~ ^[0-9]{1,9}$ ]] || stop "$name is '${!name:-}', which is no whole number"
    printf -v "$name" %d "$((10#${!name}))"  # bash would read 010 as 8, and 08 as nothing
  done
}

# The same above 0.
need_positive() {
  need_number "$@"
  local name
  for name; do
    [[ ${!name} -gt 0 ]] || stop "$name is 0; give a whole number above 0"
  done
}

# Stops unless what every training needs is there.
# shellcheck disable=SC2153  # the settings of the scripts, and `launch` below
need_training() {
  need SLURM_JOB_ID LOCKSTEP TRAIN CONFIG
  command -v -- "$TRAIN" > /dev/null || stop "TRAIN is '$TRAIN', which is no program; build it as README.md says"
  [[ -r $CONFIG ]] || stop "CONFIG is '$CONFIG', which cannot be read"
  case $LAUNCH in
    srun)
      # Without PMIx srun starts ranks that do not know of each other.
      # All that it says is read: with pipefail, an srun whose reader is gone would count as one without PMIx.
      [[ $(srun --mpi=list 2>&1) =~ (^|[^[:alnum:]_])pmix([^[:alnum:]]|$) ]] \
        || stop "LAUNCH is srun, but this Slurm has no PMIx (srun --mpi=list); use LAUNCH=mpirun"
      ;;
    mpirun)
      command -v mpirun > /dev/null || stop "LAUNCH is mpirun, which is not found; load its module, or use LAUNCH=srun"
      ;;
    *) stop "LAUNCH is '$LAUNCH'; give srun or mpirun" ;;
  esac
}

# Sets `launch`: the words that start $1 ranks; "": as many as the allocation has tasks.
choose_launch() {
  if [[ $LAUNCH == srun ]]; then
    # A rank that is killed ends the others; and they get all of this environment, whatever sbatch was told.
    launch=(srun --mpi=pmix --cpu-bind=cores --kill-on-bad-exit=1 --export=ALL)
  else
    launch=(mpirun --bind-to core)
  fi
  if [[ -n $1 ]]; then launch+=(-n "$1"); fi
  # shellcheck disable=SC2206  # it may hold several words
  launch+=(${LAUNCH_OPTIONS:-})
}

# Trains into CHECKPOINT_DIR and has Slurm queue the job again until it is done. Further words are options of
# lockstep-train. Does not return.
train_until_done() {
  need_training
  need CHECKPOINT_DIR
  need_number MAX_RESTARTS
  choose_launch ""
  exec "$LOCKSTEP/tools/run_until_done" --requeue --max_restarts "$MAX_RESTARTS" --checkpoint_dir "$CHECKPOINT_DIR" -- \
    "${launch[@]}" "$TRAIN" --config "$CONFIG" --checkpoint_dir "$CHECKPOINT_DIR" "$@"
}
