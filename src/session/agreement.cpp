#include "agreement.hpp"

#include <algorithm>
#include <array>
#include <vector>

#include <fmt/format.h>

#include <lockstep/base/digest.hpp>
#include <lockstep/base/error.hpp>

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
  using Digests = std::array<Digest, kMaxStatements>;
  if (statements.size() > kMaxStatements) throw InternalError("too many statements to compare");
  Digests mine{};
  for (std::size_t i = 0; i < statements.size(); ++i) {
    mine[i] = digest_of(std::as_bytes(std::span(statements[i].text)));
  }
  const std::vector<Digests> all = comm.all_gather(mine);
  for (std::size_t i = 0; i < statements.size(); ++i) {
    const auto odd = std::ranges::find_if(all, [&](const Digests& d) { return d[i] != all.front()[i]; });
    if (odd == all.end()) continue;
    std::vector<int> same;  // as the first that differs
    for (std::size_t r = 0; r < all.size(); ++r) {
      if (all[r][i] == (*odd)[i]) same.push_back(static_cast<int>(r));
    }
    const std::string of_chief = comm.broadcast_text(statements[i].text, 0);
    const std::string of_odd = comm.broadcast_text(statements[i].text, same.front());
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
