#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include <lockstep/base/error.hpp>
#include <lockstep/mpi/fold_ranks.hpp>

namespace lockstep {
namespace {

constexpr int kFoldTag = 6;  // the communicator's own are below, those of the reduction above

// Messages begin with the length of all bytes; what does not fit into this is a second message.
constexpr std::size_t kHead = 512;

struct Fold {
  std::vector<std::byte> mine;  ///< behind its length
  std::vector<std::byte> behind;
};

constexpr std::size_t kLength = sizeof(std::uint64_t);

std::size_t length_in(const std::vector<std::byte>& message) {
  std::uint64_t length = 0;
  std::memcpy(&length, message.data(), kLength);
  return length;
}

void set_length(std::vector<std::byte>& message) {
  const std::uint64_t length = message.size() - kLength;
  std::memcpy(message.data(), &length, kLength);
}

/// Both parts of a message whose length the other side does not know: `pass` sends or receives bytes.
template <class Pass>
void pass_on(std::vector<std::byte>& message, const Pass& pass) {
  pass(std::span(message).first(std::min(message.size(), kHead)));
  message.resize(kLength + length_in(message));
  if (message.size() > kHead) pass(std::span(message).subspan(kHead));
}

}  // namespace

std::vector<std::byte> fold_bytes(const Communicator& comm, std::string_view what,
                                  std::vector<std::byte> mine, const JoinBytes& join) {
  if (comm.size() == 1) return mine;
  comm.barrier(what);  // knows how to find out who is missing
  auto fold = std::make_unique<Fold>();
  fold->mine.resize(kLength + mine.size());
  std::ranges::copy(mine, fold->mine.begin() + kLength);
  set_length(fold->mine);
  const auto finish = [&](Request request, int partner) {
    comm.wait(request, what, fmt::format("rank {}", partner));
  };
  const int rank = comm.rank();
  try {
    for (int bit = 1; bit < comm.size(); bit *= 2) {
      const int partner = rank ^ bit;
      if ((rank & bit) != 0) {
        pass_on(fold->mine,
                [&](std::span<std::byte> bytes) { finish(comm.send(bytes, partner, kFoldTag), partner); });
        break;
      }
      if (partner >= comm.size()) continue;
      fold->behind.resize(kHead);
      pass_on(fold->behind,
              [&](std::span<std::byte> bytes) { finish(comm.receive(bytes, partner, kFoldTag), partner); });
      mine.assign(fold->mine.begin() + kLength, fold->mine.end());
      join(mine, {fold->behind.begin() + kLength, fold->behind.end()});
      fold->mine.resize(kLength + mine.size());
      std::ranges::copy(mine, fold->mine.begin() + kLength);
      set_length(fold->mine);
    }
    const std::size_t whole = fold->mine.size();
    fold->mine.resize(std::max(whole, kHead));
    pass_on(fold->mine, [&](std::span<std::byte> bytes) { comm.broadcast(bytes, 0, what); });
  } catch (const DeadlineExceeded&) {
    static_cast<void>(fold.release());  // messages under way may still be written into it
    throw;
  }
  mine.assign(fold->mine.begin() + kLength, fold->mine.end());
  return mine;
}

}  // namespace lockstep
