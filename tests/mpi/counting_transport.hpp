#pragma once

#include <algorithm>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <lockstep/mpi/communicator.hpp>

namespace lockstep::test {

/// What a rank has started.
struct Count {
  int sends = 0;
  int receives = 0;
  int broadcasts = 0;
  int gathers = 0;
  int sums = 0;
  int ballots = 0;
  friend bool operator==(const Count&, const Count&) = default;
};

/// Passes everything on to a communicator, and counts. On `clock`, if given, each turn of a wait takes kTurn.
class CountingTransport final : public Transport {
 public:
  CountingTransport(Communicator real, std::shared_ptr<Count> count,
                    std::shared_ptr<FakeClock> clock = nullptr)
      : real_(std::move(real)), count_(std::move(count)), clock_(std::move(clock)) {}

  static constexpr Seconds kTurn{0.01};

  int rank() const noexcept override { return real_.rank(); }
  int size() const noexcept override { return real_.size(); }
  Request send(std::span<const std::byte> bytes, int destination, int tag) override {
    ++count_->sends;
    return real_.send(bytes, destination, tag);
  }
  Request receive(std::span<std::byte> bytes, int source, int tag) override {
    ++count_->receives;
    return real_.receive(bytes, source, tag);
  }
  Request broadcast(std::span<std::byte> bytes, int root) override {
    ++count_->broadcasts;
    real_.broadcast(bytes, root);
    return {};
  }
  Request all_gather(std::span<const std::byte> mine, std::span<std::byte> all) override {
    ++count_->gathers;
    const std::string text(reinterpret_cast<const char*>(mine.data()), mine.size());
    std::byte* out = all.data();
    for (const std::string& theirs : real_.all_gather_text(text)) {
      out = std::ranges::copy(std::as_bytes(std::span(theirs)), out).out;
    }
    return {};
  }
  Request all_reduce_sum(std::span<float> values) override {
    ++count_->sums;
    std::vector<Request> requests;
    real_.all_reduce_sum(values, requests);
    return requests.front();
  }
  Request all_reduce_value(std::span<std::byte> value, Combine combine) override {
    ++count_->ballots;
    return real_.all_reduce_value(value, combine);
  }
  bool test(Request& request) override { return real_.test(request); }
  std::shared_ptr<Transport> split(int color, int key) override {
    return std::make_shared<CountingTransport>(real_.split(color, key), count_, clock_);
  }
  void let_go() noexcept override { real_.let_go(); }
  std::shared_ptr<Transport> split_by_node() override {
    return std::make_shared<CountingTransport>(real_.split_by_node(), count_, clock_);
  }
  std::unique_ptr<SharedMemory> share(std::size_t bytes, FirstTouch touch) override {
    return real_.share(bytes, touch);
  }
  bool relax(std::uint64_t) override {
    // One turn of a wait of the real one.
    int looks = 0;
    real_.wait_until(
        "a turn", [&] { return looks++ > 1; }, [] { return std::string(); });
    if (!clock_) return false;
    clock_->advance(kTurn);
    return true;
  }
  bool has_message(int source, int tag) override { return real_.has_message(source, tag); }
  [[noreturn]] void abort(int code, std::string_view reason) override {
    real_.abort(static_cast<ExitCode>(code), reason);
  }

 private:
  Communicator real_;
  std::shared_ptr<Count> count_;
  std::shared_ptr<FakeClock> clock_;
};

}  // namespace lockstep::test
