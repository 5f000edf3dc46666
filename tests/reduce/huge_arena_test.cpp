#include <algorithm>
#include <array>
#include <climits>
#include <cstring>
#include <deque>
#include <map>
#include <utility>

#include <doctest/doctest.h>
#include <sys/mman.h>

#include <lockstep/mpi/simulated_world.hpp>
#include <lockstep/reduce/reducer.hpp>

namespace lockstep {
namespace {

/// Addresses for any number of bytes over 2 MiB of memory, which show again and again: what is written to one
/// place is read at all places 2 MiB apart.
class RepeatedMemory {
 public:
  static constexpr std::size_t kUnit = std::size_t{1} << 21;

  RepeatedMemory(std::size_t own_bytes, std::size_t bytes) : bytes_((bytes + kUnit - 1) / kUnit * kUnit) {
    const std::size_t own = (own_bytes + kUnit - 1) / kUnit * kUnit;  // what does not repeat, in front
    void* space = ::mmap(nullptr, bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    REQUIRE(space != MAP_FAILED);
    base_ = static_cast<std::byte*>(space);
    const int file = ::memfd_create("repeated", 0);
    REQUIRE(file >= 0);
    REQUIRE(::ftruncate(file, static_cast<off_t>(kUnit)) == 0);
    for (std::size_t at = 0; at < bytes_; at += kUnit) {
      const int flags = MAP_FIXED | (at < own ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED);
      void* part = ::mmap(base_ + at, kUnit, PROT_READ | PROT_WRITE, flags, at < own ? -1 : file, 0);
      REQUIRE(part == base_ + at);
    }
    ::close(file);
  }
  RepeatedMemory(const RepeatedMemory&) = delete;
  RepeatedMemory& operator=(const RepeatedMemory&) = delete;
  ~RepeatedMemory() { ::munmap(base_, bytes_); }

  std::span<std::byte> bytes() const { return {base_, bytes_}; }

 private:
  std::byte* base_ = nullptr;
  std::size_t bytes_;
};

class RepeatedWindow final : public SharedMemory {
 public:
  explicit RepeatedWindow(std::size_t bytes) : memory_(4096, bytes), bytes_(bytes) {}
  std::span<std::byte> region(int) const override { return memory_.bytes().first(bytes_); }

 private:
  RepeatedMemory memory_;
  std::size_t bytes_;
};

/// Offsets and lengths in bytes.
using Pieces = std::vector<std::pair<std::size_t, std::size_t>>;

/// What went over a rank's window, by tag.
struct Traffic {
  std::map<int, Pieces> sent;
  std::map<int, Pieces> received;
  std::span<const std::byte> window;
  std::size_t largest = 0;  ///< message or sum, as a count that MPI gets
  std::size_t summed = 0;   ///< floats given to all_reduce_sum
};

/// Checks messages and sends only how long they are and how they begin; whoever receives one that is too long
/// finds it out. Ranks are nodes of their own.
class CheckingTransport final : public Transport {
 public:
  CheckingTransport(Communicator real, std::shared_ptr<Traffic> traffic)
      : real_(std::move(real)), traffic_(std::move(traffic)) {}

  int rank() const noexcept override { return real_.rank(); }
  int size() const noexcept override { return real_.size(); }

  Request send(std::span<const std::byte> bytes, int destination, int tag) override {
    note(traffic_->sent[tag], bytes);
    Message& message = messages_.emplace_back();
    message.length = bytes.size();
    std::copy_n(bytes.begin(), std::min(bytes.size(), message.head.size()), message.head.begin());
    message.request = real_.send(std::as_bytes(std::span(&message.length, 1)), destination, tag);
    message.second = real_.send(message.head, destination, tag);
    return number(message);
  }

  Request receive(std::span<std::byte> bytes, int source, int tag) override {
    note(traffic_->received[tag], bytes);
    Message& message = messages_.emplace_back();
    message.target = bytes;
    message.request = real_.receive(std::as_writable_bytes(std::span(&message.length, 1)), source, tag);
    message.second = real_.receive(message.head, source, tag);
    return number(message);
  }

  bool test(Request& request) override {
    if (request.done) return true;
    Message& message = messages_[request.handle[0]];
    if (!real_.test(message.request) || !real_.test(message.second)) return false;
    if (message.target.data() != nullptr) {
      CHECK(message.length <= message.target.size());
      const std::size_t head = std::min({message.length, message.head.size(), message.target.size()});
      std::copy_n(message.head.begin(), head, message.target.begin());
    }
    request.done = true;
    return true;
  }

  Request broadcast(std::span<std::byte> bytes, int root) override {
    real_.broadcast(bytes, root);
    return {};
  }
  Request all_gather(std::span<const std::byte> mine, std::span<std::byte> all) override {
    const std::string text(reinterpret_cast<const char*>(mine.data()), mine.size());
    std::byte* out = all.data();
    for (const std::string& theirs : real_.all_gather_text(text)) {
      out = std::ranges::copy(std::as_bytes(std::span(theirs)), out).out;
    }
    return {};
  }
  Request all_reduce_sum(std::span<float> values) override {
    traffic_->largest = std::max(traffic_->largest, values.size());
    traffic_->summed += values.size();
    return {};
  }
  Request all_reduce_value(std::span<std::byte> value, Combine combine) override {
    return real_.all_reduce_value(value, combine);
  }
  std::shared_ptr<Transport> split(int color, int key) override {
    return std::make_shared<CheckingTransport>(real_.split(color, key), traffic_);
  }
  std::shared_ptr<Transport> split_by_node() override { return split(rank(), 0); }
  std::unique_ptr<SharedMemory> share(std::size_t bytes, FirstTouch) override {
    auto window = std::make_unique<RepeatedWindow>(bytes);
    traffic_->window = window->region(0);
    return window;
  }
  bool relax(std::uint64_t) override {
    int turns = 0;
    real_.wait_until(
        "a turn", [&] { return turns++ > 1; }, [] { return std::string(); });
    return false;
  }
  bool has_message(int source, int tag) override { return real_.has_message(source, tag); }
  [[noreturn]] void abort(int code, std::string_view reason) override {
    real_.abort(static_cast<ExitCode>(code), reason);
  }

 private:
  struct Message {
    std::size_t length = 0;
    std::array<std::byte, 2048> head{};  // a ballot, and what comes first behind it
    std::span<std::byte> target;
    Request request;
    Request second;
  };

  void note(Pieces& where, std::span<const std::byte> bytes) {
    traffic_->largest = std::max(traffic_->largest, bytes.size());
    const std::byte* const first = traffic_->window.data();
    if (bytes.data() < first || bytes.data() >= first + traffic_->window.size()) return;
    CHECK(bytes.data() + bytes.size() <= first + traffic_->window.size());
    where.emplace_back(static_cast<std::size_t>(bytes.data() - first), bytes.size());
  }
  Request number(const Message&) const {
    Request request;
    request.handle[0] = messages_.size() - 1;
    request.done = false;
    return request;
  }

  Communicator real_;
  std::shared_ptr<Traffic> traffic_;
  std::deque<Message> messages_;  // where they are stays the same
};

constexpr int kShardTag = 103;
constexpr int kFirstBucketTag = 104;  // collect, spread, collect, ...

/// Where each element of an arena is from, or goes: bytes of the pieces, none twice, none left out.
bool covers_once(Pieces pieces, std::size_t first, std::size_t bytes) {
  std::ranges::sort(pieces);
  for (const auto& [offset, length] : pieces) {
    if (offset != first) return false;
    first += length;
    bytes -= length;
  }
  return bytes == 0;
}

constexpr std::size_t k31 = std::size_t{1} << 31;
constexpr std::size_t k32 = std::size_t{1} << 32;

}  // namespace

TEST_CASE(
    "between nodes every element of an arena around 2^31 and 2^32 goes once, in messages that MPI can "
    "count") {
  struct Case {
    int nodes;
    std::size_t elements;
    bool shard;
  };
  for (const Case& c : {Case{2, k31 - 16, false}, Case{3, k31 + 4096 + 48, true}, Case{2, k32 - 16, true},
                        Case{2, k32 + 16, false}}) {
    CAPTURE(c.nodes);
    CAPTURE(c.elements);
    int right = 0;
    SimulatedWorld{c.nodes, 1, 7}.run([&](const Communicator& real) {
      const auto traffic = std::make_shared<Traffic>();
      const Communicator world(std::make_shared<CheckingTransport>(real, traffic), real.policy());
      const Topology topology(world);
      const RepeatedMemory parameters(0, c.shard ? c.elements * sizeof(float) : 1);
      ReducerOptions options{.bucket_bytes = std::size_t{8} << 20,
                             .exchange = ReducerOptions::Exchange::buckets,
                             .shard = c.shard};
      if (c.shard) {
        options.parameters = {reinterpret_cast<float*>(parameters.bytes().data()), c.elements};
      }
      const auto reducer = make_reducer(ReductionKind::canonical, topology, c.elements, c.nodes, options);
      CHECK(reducer->bytes() < (c.elements + c.elements / 8) * sizeof(float));
      CHECK(reducer->begin_micro_batch().size() == c.elements + kMicroBatchValues);
      reducer->gradient_ready(k31 + 4096);
      reducer->gradient_ready(4096);
      // While backward still runs; the owner of a shard has nothing to send of it.
      CHECK((c.shard || traffic->sent.lower_bound(kFirstBucketTag) != traffic->sent.end()));
      reducer->end_micro_batch();
      const Tally tally = reducer->reduce(Tally(world.rank()));
      CHECK(tally.ranks() == c.nodes);
      CHECK(tally.agrees());
      // Of the whole sum, or of the parameters, each element is sent to the others or comes from one of them.
      const std::byte* start = std::as_bytes(reducer->sum()).data();
      if (c.shard) {
        traffic->window = parameters.bytes();
        start = traffic->window.data();
      }
      reducer->finish();
      const auto comes_last = [&](int tag) {
        return c.shard ? tag == kShardTag : tag >= kFirstBucketTag && (tag - kFirstBucketTag) % 2 == 1;
      };
      Pieces pieces;
      for (const auto& [tag, list] : traffic->received) {
        if (comes_last(tag)) pieces.insert(pieces.end(), list.begin(), list.end());
      }
      for (auto& [tag, list] : traffic->sent) {
        if (!comes_last(tag)) continue;
        std::ranges::sort(list);
        for (std::size_t i = 0; i < list.size(); i += static_cast<std::size_t>(c.nodes - 1)) {
          pieces.push_back(list[i]);  // the same goes to each of the others
          CHECK(list[i] == list[i + static_cast<std::size_t>(c.nodes - 2)]);
        }
      }
      const auto first = static_cast<std::size_t>(start - traffic->window.data());
      CHECK(covers_once(pieces, first, c.elements * sizeof(float)));
      CHECK(traffic->largest <= std::size_t{INT_MAX});
      ++right;
    });
    CHECK(right == c.nodes);
  }
}

TEST_CASE("MPI's own sum of an arena beyond 2^31 goes in pieces that MPI can count") {
  for (const std::size_t elements : {k31 - 16, k31 + 16, k32 + 16}) {
    CAPTURE(elements);
    const auto traffic = std::make_shared<Traffic>();
    const Communicator world(std::make_shared<CheckingTransport>(Communicator::self(), traffic));
    const RepeatedMemory memory(0, elements * sizeof(float));
    const std::span values(reinterpret_cast<float*>(memory.bytes().data()), elements);
    std::vector<Request> requests;
    world.all_reduce_sum(values, requests);
    for (Request& request : requests) CHECK(world.test(request));
    CHECK(traffic->summed == elements);
    CHECK(traffic->largest <= std::size_t{INT_MAX});
  }
}

}  // namespace lockstep
