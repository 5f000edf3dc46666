#include <cstring>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <lockstep/base/error.hpp>
#include <lockstep/data/npy.hpp>

#include "memory_files.hpp"

namespace lockstep {
namespace {

template <class Value>
testing::Bytes npy(const std::string& header, const std::vector<Value>& values) {
  testing::Bytes file{0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0};
  const std::string text = header + "\n";
  file.push_back(static_cast<std::uint8_t>(text.size() & 255U));
  file.push_back(static_cast<std::uint8_t>(text.size() >> 8U));
  file.insert(file.end(), text.begin(), text.end());
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(values.data());
  file.insert(file.end(), bytes, bytes + values.size() * sizeof(Value));
  return file;
}

testing::MemoryFiles two_samples() {
  testing::MemoryFiles files;
  files.files["d/train_inputs.npy"] =
      npy<float>("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2, 3), }",
                 {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12});
  files.files["d/train_targets.npy"] =
      npy<double>("{'descr': '<f8', 'fortran_order': False, 'shape': (2, 1), }", {0.5, 1e-3});
  return files;
}

TEST_CASE("samples and their values come as they were written, float64 rounded") {
  testing::MemoryFiles files = two_samples();
  const auto data = load_npy(files, "d", Split::train);
  CHECK(data->size() == 2);
  CHECK(data->sample_shape() == std::vector<std::int64_t>{2, 3});
  CHECK(data->target_shape() == std::vector<std::int64_t>{1});
  CHECK(data->target_elements() == 1);
  CHECK(data->classes() == 0);
  CHECK(data->labels_per_sample() == 0);
  const std::vector<std::int64_t> indices{1, 0};
  std::vector<float> inputs(12);
  std::vector<float> targets(2);
  data->fill(indices, inputs, {});
  data->fill_targets(indices, targets);
  CHECK(inputs == std::vector<float>{7, 8, 9, 10, 11, 12, 1, 2, 3, 4, 5, 6});
  CHECK(targets == std::vector<float>{1e-3F, 0.5F});
  CHECK_THROWS_AS(data->fill(std::vector<std::int64_t>{2, 0}, inputs, {}), InternalError);
  CHECK_THROWS_AS(data->fill_targets(indices, inputs), InternalError);
  auto other = two_samples();
  other.files["d/train_targets.npy"].back() ^= 1U;
  CHECK(load_npy(other, "d", Split::train)->digest().hex() != data->digest().hex());
}

TEST_CASE("what is missing, cut off or of another kind is refused by name") {
  const auto refused = [](const testing::Bytes& file, const char* words) {
    auto files = two_samples();
    files.files["d/train_inputs.npy"] = file;
    CHECK_THROWS_WITH_AS(load_npy(files, "d", Split::train), doctest::Contains(words), DataError);
  };
  auto files = two_samples();
  CHECK_THROWS_WITH_AS(load_npy(files, "d", Split::test), doctest::Contains("test_inputs.npy"), DataError);
  const std::string good = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }";
  refused(npy<float>(good, {1, 2, 3}), "12 bytes of values");
  refused(npy<float>("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 1), }", {1, 2, 3}),
          "3 samples in train_inputs");
  refused(npy<float>("{'descr': '<i4', 'fortran_order': False, 'shape': (2, 2), }", {1, 2, 3, 4}), "'<i4'");
  refused(npy<float>("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 2), }", {1, 2, 3, 4}), "Fortran");
  refused(npy<float>("{'descr': '<f4', 'fortran_order': False, }", {1}), "no 'shape'");
  refused(npy<float>("{'descr': '<f4', 'fortran_order': False, 'shape': (2", {1}), "no shape");
  refused(npy<float>("{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }", {1, 2, 3, 4}),
          "[samples, ...]");
  refused(npy<float>("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 99999999999999999999), }", {1}),
          "too large");
  refused(npy<float>("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 1000000000), }", {1}),
          "too large");
  refused({}, "no .npy file");
  // Whatever is cut off, nothing else happens.
  const testing::Bytes whole = two_samples().files["d/train_inputs.npy"];
  for (std::size_t size = 0; size < whole.size(); ++size) {
    auto cut = two_samples();
    cut.files["d/train_inputs.npy"].resize(size);
    CHECK_THROWS_AS(load_npy(cut, "d", Split::train), DataError);
  }
}

}  // namespace
}  // namespace lockstep
