#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <lockstep/train/evaluator.hpp>

namespace lockstep {

/// What a report says of an evaluation, by name: "accuracy", "loss", or "rmse"; NaN for what is not known.
/// Without an evaluation: accuracy and loss, not known.
std::vector<std::pair<std::string, double>> evaluation_values(const std::optional<Evaluation>& evaluation);

/// The same for people: "accuracy 0.9100, loss 0.2800 over 10000 samples".
std::string evaluation_text(const Evaluation& evaluation);

}  // namespace lockstep
