#pragma once

#include <cstddef>
#include <cstring>
#include <functional>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <lockstep/mpi/communicator.hpp>

namespace lockstep {

/// What `fold_ranks` and `fold_lists` are made of: adds the bytes of the ranks behind to those before.
using JoinBytes = std::function<void(std::vector<std::byte>& before, const std::vector<std::byte>& behind)>;
std::vector<std::byte> fold_bytes(const Communicator& comm, std::string_view what,
                                  std::vector<std::byte> mine, const JoinBytes& join);

/// Joins the values of all ranks to one, the same on every rank: `join(before, behind)` gives that of some
/// neighbouring ranks and those behind them, always in the order of ranks. It must be associative. `what`
/// says in messages what the ranks wait for.
///
/// Collective: a barrier, in which the chief names the ranks that are missing; then a rank sends one message
/// and receives as many as the logarithm of the ranks, and one broadcast. So nobody ever holds a list of the
/// ranks, as after a gather.
template <class T, class Join>
T fold_ranks(const Communicator& comm, std::string_view what, const T& mine, Join join) {
  static_assert(std::is_trivially_copyable_v<T>);
  std::vector<std::byte> bytes(sizeof(T));
  std::memcpy(bytes.data(), &mine, sizeof(T));
  bytes = fold_bytes(comm, what, std::move(bytes),
                     [&](std::vector<std::byte>& before, const std::vector<std::byte>& behind) {
                       T left;
                       T right;
                       std::memcpy(&left, before.data(), sizeof(T));
                       std::memcpy(&right, behind.data(), sizeof(T));
                       const T both = join(left, right);
                       std::memcpy(before.data(), &both, sizeof(T));
                     });
  T all;
  std::memcpy(&all, bytes.data(), sizeof(T));
  return all;
}

/// The same of lists, whose lengths may differ: `join(before, behind)` changes `before`. Where one is longer
/// than half a KiB, messages are twice as many.
template <class T, class Join>
std::vector<T> fold_lists(const Communicator& comm, std::string_view what, const std::vector<T>& mine,
                          Join join) {
  static_assert(std::is_trivially_copyable_v<T>);
  const auto bytes_of = [](const std::vector<T>& list) {
    std::vector<std::byte> bytes(list.size() * sizeof(T));
    if (!list.empty()) std::memcpy(bytes.data(), list.data(), bytes.size());
    return bytes;
  };
  const auto list_of = [](const std::vector<std::byte>& bytes) {
    std::vector<T> list(bytes.size() / sizeof(T));
    if (!list.empty()) std::memcpy(list.data(), bytes.data(), bytes.size());
    return list;
  };
  return list_of(fold_bytes(comm, what, bytes_of(mine),
                            [&](std::vector<std::byte>& before, const std::vector<std::byte>& behind) {
                              std::vector<T> both = list_of(before);
                              join(both, list_of(behind));
                              before = bytes_of(both);
                            }));
}

}  // namespace lockstep
