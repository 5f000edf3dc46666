#pragma once

// Everything a training program needs, in one include.

#include <lockstep/base/error.hpp>
#include <lockstep/base/executor.hpp>
#include <lockstep/base/files.hpp>
#include <lockstep/base/log.hpp>
#include <lockstep/base/random.hpp>
#include <lockstep/base/signals.hpp>
#include <lockstep/data/image_dataset.hpp>
#include <lockstep/hooks/checkpoint_saver.hpp>
#include <lockstep/hooks/logging_tensor.hpp>
#include <lockstep/hooks/nan_tensor.hpp>
#include <lockstep/hooks/step_counter.hpp>
#include <lockstep/hooks/stop_at_step.hpp>
#include <lockstep/hooks/summary_saver.hpp>
#include <lockstep/mpi/environment.hpp>
#include <lockstep/mpi/interop.hpp>
#include <lockstep/nn/dense.hpp>
#include <lockstep/nn/optimizer.hpp>
#include <lockstep/nn/relu.hpp>
#include <lockstep/nn/schedule.hpp>
#include <lockstep/nn/sequential.hpp>
#include <lockstep/session/monitored_training_session.hpp>
#include <lockstep/train/evaluator.hpp>
#include <lockstep/train/trainer.hpp>
