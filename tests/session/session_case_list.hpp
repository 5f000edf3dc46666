#pragma once

#include "session_cases.hpp"

// The claims about sessions, for programs that say with `everywhere` on which ranks to try them.

namespace lockstep {

/// Runs a case on the ranks of this program. Defined by the program.
void everywhere(void (*check)(const Communicator&));

TEST_CASE("a session saves at its end and the next one goes on from there") {
  everywhere(test::check_saving_and_restoring);
}

TEST_CASE("the chief's first values reach all ranks, in own and in shared memory") {
  everywhere(test::check_initial_values_reach_all);
}

TEST_CASE("checkpoints at intervals of steps and of the chief's seconds") {
  everywhere(test::check_intervals);
}

TEST_CASE("a launch that is refused leaves a finished run's status as it is") {
  everywhere(test::check_a_refused_launch);
}

TEST_CASE("interval 0 means no default saver, and chief-only hooks run on the chief") {
  everywhere(test::check_no_default_saver);
}

TEST_CASE("a saver of one's own takes the place of the default one") {
  everywhere(test::check_a_saver_of_ones_own);
}

TEST_CASE("summaries by steps and by seconds, with global_step/sec") {
  everywhere(test::check_summaries);
}

TEST_CASE("last_step and num_steps stop, also before the first step") {
  everywhere(test::check_stops);
}

TEST_CASE("when one rank asks to stop, whichever and wherever, all stop after the same step") {
  everywhere(test::check_one_rank_stops_all);
}

TEST_CASE("a stop without a reason is a stop") {
  everywhere(test::check_a_stop_without_a_reason);
}

TEST_CASE("end of input on one rank, whichever it is, drops the step and ends all cleanly") {
  everywhere(test::check_end_of_input);
}

TEST_CASE("end of input after reducing is an error on all") {
  everywhere(test::check_late_end_of_input);
}

TEST_CASE("a step of shared parameters that one rank did not finish is not saved") {
  everywhere(test::check_torn_steps_are_not_saved);
}

TEST_CASE("errors of steps without gradients reach all ranks") {
  everywhere(test::check_errors_without_gradients);
}

TEST_CASE("an exception that is not ours keeps its type where it was thrown") {
  everywhere(test::check_foreign_exceptions);
}

TEST_CASE("of several failures the lowest rank's is told") {
  everywhere(test::check_several_fail_at_once);
}

TEST_CASE("a deadline of the program's own is no lost rank") {
  everywhere(test::check_a_deadline_of_the_program);
}

TEST_CASE("ranks that differ at the start are told which and how") {
  everywhere(test::check_differences_at_start);
}

TEST_CASE("ranks that differ within a step fail together") {
  everywhere(test::check_differences_in_a_step);
}

TEST_CASE("NaN on one rank, whichever it is, stops or fails all at that step") {
  everywhere(test::check_nan_on_one_rank);
}

TEST_CASE("clocks that differ between ranks give one decision") {
  everywhere(test::check_skewed_clocks);
}

TEST_CASE("more timers than a ballot has bits for are refused on all ranks") {
  everywhere(test::check_too_many_timers);
}

TEST_CASE("a signal on any rank, or the time limit, stops all early with a save") {
  everywhere(test::check_signals_and_time_limit);
}

TEST_CASE("what the end of a hook changes is saved") {
  everywhere(test::check_an_end_that_changes_the_state);
}

TEST_CASE("save_now on any rank saves after that step") {
  everywhere(test::check_save_now);
}

TEST_CASE("close may come twice, run may not come after it, and a destructor never throws") {
  everywhere(test::check_closing);
}

TEST_CASE("who asked to stop, when and why is in the chief's log, whatever it was") {
  everywhere(test::check_why_it_stopped);
}

TEST_CASE("an exception between steps leaves a failed status, no final save and no lock") {
  everywhere(test::check_an_exception_between_steps);
}

TEST_CASE("a second session in one directory is refused and the first goes on") {
  everywhere(test::check_second_session_in_one_directory);
}

TEST_CASE("misuse is an error on all ranks") {
  everywhere(test::check_misuse);
}

TEST_CASE("the same results for each way to sum, to share and to sit on nodes") {
  everywhere(test::check_same_results);
}

TEST_CASE("a session without parameters keeps the user's own memory") {
  everywhere(test::check_session_only);
}

}  // namespace lockstep
