#include "agreement.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include <fmt/format.h>

#include <lockstep/base/digest.hpp>
#include <lockstep/base/error.hpp>
#include <lockstep/mpi/fold_ranks.hpp>

namespace lockstep {
namespace {

/// The line of `text` around `at`.
std::string line_at(const std::string& text, std::size_t at) {
  const std::size_t begin = at == 0 ? 0 : text.rfind('\n', at - 1) + 1;
  const std::string line = text.substr(begin, text.find('\n', at) - begin);
  return line.empty() ? std::string("nothing more") : "'" + line + "'";
}

}  // namespace

void compare_ranks(const Communicator& comm, std::span<const Statement> statements) {
  constexpr int kNobody = -1;
  /// What neighbouring ranks state.
  struct Stated {
    int first;                                  ///< the first of these ranks
    std::array<Digest, kMaxStatements> digest;  ///< of each statement, as that rank has it
    std::array<int, kMaxStatements> odd;        ///< the first of the others that has another one, or kNobody
  };
  if (statements.size() > kMaxStatements) throw InternalError("too many statements to compare");
  Stated mine{comm.rank(), {}, {}};
  mine.odd.fill(kNobody);
  for (std::size_t i = 0; i < statements.size(); ++i) {
    mine.digest[i] = digest_of(std::as_bytes(std::span(statements[i].text)));
  }
  const Stated all =
      fold_ranks(comm, "all ranks to compare what they run", mine, [](Stated before, const Stated& behind) {
        for (std::size_t i = 0; i < kMaxStatements; ++i) {
          if (before.odd[i] != kNobody) continue;
          before.odd[i] = behind.digest[i] == before.digest[i] ? behind.odd[i] : behind.first;
        }
        return before;
      });
  for (std::size_t i = 0; i < statements.size(); ++i) {
    const int odd = all.odd[i];
    if (odd == kNobody) continue;
    const std::string of_chief = comm.broadcast_text(statements[i].text, 0);
    const std::string of_odd = comm.broadcast_text(statements[i].text, odd);
    // Once, since this ends the job.
    const auto as_odd = comm.all_gather<std::uint8_t>(statements[i].text == of_odd ? 1 : 0);
    std::vector<int> same;
    for (std::size_t r = 0; r < as_odd.size(); ++r) {
      if (as_odd[r] != 0) same.push_back(static_cast<int>(r));
    }
    // The first line that differs, not the whole.
    std::size_t at = 0;
    while (at < of_chief.size() && at < of_odd.size() && of_chief[at] == of_odd[at]) ++at;
    throw EnvironmentError(fmt::format(
        "ranks disagree on {}: rank 0 has {}, {} {}; start all ranks with the same program and options",
        statements[i].what, line_at(of_chief, std::min(at, of_chief.size())),
        same.size() == 1 ? fmt::format("rank {} has", same.front())
                         : fmt::format("ranks {} have", to_string_ranks(same)),
        line_at(of_odd, std::min(at, of_odd.size()))));
  }
}

}  // namespace lockstep
