#include "evaluation_text.hpp"

#include <limits>

#include <fmt/format.h>

namespace lockstep {

std::vector<std::pair<std::string, double>> evaluation_values(const std::optional<Evaluation>& evaluation) {
  constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();
  if (!evaluation) return {{"accuracy", kUnknown}, {"loss", kUnknown}};
  if (!evaluation->values) {
    return {{"accuracy", evaluation->accuracy},
            {fmt::format("top_{}_accuracy", Evaluation::kTopK), evaluation->top_k_accuracy},
            {"loss", evaluation->loss}};
  }
  return {{"rmse", evaluation->values->rmse()},
          {"mae", evaluation->values->mae()},
          {"r_squared", evaluation->values->r_squared()},
          {"loss", evaluation->loss}};
}

std::string evaluation_text(const Evaluation& evaluation) {
  if (!evaluation.values) {
    return fmt::format("accuracy {:.4f}, loss {:.4f} over {} samples", evaluation.accuracy, evaluation.loss,
                       evaluation.samples);
  }
  return fmt::format("RMSE {:.4g}, R squared {:.4f}, loss {:.4g} over {} samples", evaluation.values->rmse(),
                     evaluation.values->r_squared(), evaluation.loss, evaluation.samples);
}

}  // namespace lockstep
