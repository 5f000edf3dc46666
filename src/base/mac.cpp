#include <utility>

#include <fmt/format.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/params.h>

#include <lockstep/base/error.hpp>
#include <lockstep/base/mac.hpp>

namespace lockstep {
namespace {

template <class Pointer>
Pointer made(Pointer pointer) {
  if (pointer == nullptr) throw InternalError("libcrypto has no HMAC-SHA-256");
  return pointer;
}

void check(int result) {
  if (result != 1) throw InternalError("libcrypto failed to compute an HMAC");
}

}  // namespace

MacKey::MacKey(std::vector<std::byte> secret) : secret_(std::move(secret)) {
  if (secret_.size() < kLeast) {
    throw UsageError(
        fmt::format("a key has {} bytes (at least {} are needed to be a secret)", secret_.size(), kLeast));
  }
}

MacKey MacKey::load(FileSystem& files, const std::filesystem::path& path) {
  constexpr std::uint64_t kMost = 1 << 16;
  const auto file = files.open_file(path);
  if (file->others_may_read()) {
    throw EnvironmentError(fmt::format(
        "key file '{}' can be read by others, so it is no secret; make it yours alone (chmod 600)",
        path.string()));
  }
  if (file->size() < kLeast || file->size() > kMost) {
    throw UsageError(
        fmt::format("key file '{}' has {} bytes; a key has {} to {}, such as those of head -c "
                    "32 /dev/urandom",
                    path.string(), file->size(), kLeast, kMost));
  }
  return MacKey(read_all(*file, kMost));
}

struct Mac::State {
  struct FreeMac {
    void operator()(EVP_MAC* mac) const noexcept { EVP_MAC_free(mac); }
  };
  struct FreeContext {
    void operator()(EVP_MAC_CTX* context) const noexcept { EVP_MAC_CTX_free(context); }
  };
  std::unique_ptr<EVP_MAC, FreeMac> mac{made(EVP_MAC_fetch(nullptr, "HMAC", nullptr))};
  std::unique_ptr<EVP_MAC_CTX, FreeContext> context{made(EVP_MAC_CTX_new(mac.get()))};
};

Mac::Mac(const MacKey& key) : state_(std::make_unique<State>()) {
  char hash[] = "SHA256";
  const OSSL_PARAM parameters[] = {OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, hash, 0),
                                   OSSL_PARAM_construct_end()};
  check(EVP_MAC_init(state_->context.get(), reinterpret_cast<const unsigned char*>(key.secret().data()),
                     key.secret().size(), parameters));
}

Mac::~Mac() = default;
Mac::Mac(Mac&&) noexcept = default;
Mac& Mac::operator=(Mac&&) noexcept = default;

void Mac::update(std::span<const std::byte> bytes) {
  check(EVP_MAC_update(state_->context.get(), reinterpret_cast<const unsigned char*>(bytes.data()),
                       bytes.size()));
}

Mac::Code Mac::finish() {
  Code code{};
  std::size_t size = 0;
  check(EVP_MAC_final(state_->context.get(), code.data(), &size, code.size()));
  if (size != code.size()) throw InternalError("libcrypto gave an HMAC of another size");
  return code;
}

bool Mac::equal(const Code& left, const Code& right) noexcept {
  return CRYPTO_memcmp(left.data(), right.data(), left.size()) == 0;
}

}  // namespace lockstep
