#include "hearth/mesh_cipher.h"

#include <cstring>
#include <stdexcept>

#include "formats/names.h"
#include "mesh/libcrypto.h"
#include "mesh/record_check.h"
#include "platform/cpu_features.h"

namespace hearth {
namespace {

constexpr char kAes[] = "aes-256-gcm", kChaCha[] = "chacha20-poly1305";
constexpr Named<MeshCipher> kCiphers[] = {{"plain", MeshCipher::plain},
                                          {kAes, MeshCipher::aes_256_gcm},
                                          {kChaCha, MeshCipher::chacha20_poly1305}};

// Both have nonces of 12 bytes: here the record's number, little-endian, and zeros. A key is used
// for one direction of one connection, so no nonce comes twice under a key.
class Aead : public RecordCipher {
 public:
  // Throws std::runtime_error.
  Aead(MeshCipher cipher, RecordWay way, const MeshKey& key) : evp_(libcrypto::functions()) {
    if (evp_ == nullptr)
      throw std::runtime_error(
          "mesh: this machine has no libcrypto (OpenSSL 3 or 1.1), which encrypts the mesh");
    const libcrypto::Cipher* type =
        cipher == MeshCipher::aes_256_gcm ? evp_->aes_256_gcm() : evp_->chacha20_poly1305();
    context_ = evp_->new_context();
    if (context_ == nullptr) throw std::bad_alloc();
    const auto init = way == RecordWay::seal ? evp_->encrypt_init : evp_->decrypt_init;
    if (type == nullptr || init(context_, type, nullptr, key.data(), nullptr) != 1) {
      evp_->free_context(context_);
      throw std::runtime_error(std::string("mesh: libcrypto does not offer ") +
                               (cipher == MeshCipher::aes_256_gcm ? kAes : kChaCha));
    }
  }
  ~Aead() override { evp_->free_context(context_); }
  Aead(const Aead&) = delete;
  Aead& operator=(const Aead&) = delete;

  void seal(const uint8_t* header, size_t header_size, const uint8_t* in, size_t size,
            uint8_t* out) override {
    next_nonce();
    int written = 0;
    const bool sealed =
        evp_->encrypt_init(context_, nullptr, nullptr, nullptr, nonce_) == 1 &&
        (header_size == 0 || evp_->encrypt_update(context_, nullptr, &written, header,
                                                  static_cast<int>(header_size)) == 1) &&
        evp_->encrypt_update(context_, out, &written, in, static_cast<int>(size)) == 1 &&
        evp_->encrypt_final(context_, out + size, &written) == 1 &&
        evp_->control(context_, libcrypto::kGetTag, kTagBytes, out + size) == 1;
    if (!sealed) throw std::runtime_error("mesh: libcrypto could not encrypt a record");
  }

  bool open(const uint8_t* header, size_t header_size, const uint8_t* in, size_t size,
            uint8_t* out) override {
    next_nonce();
    int written = 0;
    uint8_t tag[kTagBytes], end[kTagBytes];
    std::memcpy(tag, in + size, kTagBytes);
    return evp_->decrypt_init(context_, nullptr, nullptr, nullptr, nonce_) == 1 &&
           (header_size == 0 || evp_->decrypt_update(context_, nullptr, &written, header,
                                                     static_cast<int>(header_size)) == 1) &&
           evp_->decrypt_update(context_, out, &written, in, static_cast<int>(size)) == 1 &&
           evp_->control(context_, libcrypto::kSetTag, kTagBytes, tag) == 1 &&
           evp_->decrypt_final(context_, end, &written) == 1;
  }

 private:
  void next_nonce() {
    std::memcpy(nonce_, &records_, sizeof records_);
    ++records_;
  }

  const libcrypto::Functions* evp_;
  libcrypto::CipherContext* context_ = nullptr;
  uint64_t records_ = 0;
  uint8_t nonce_[12] = {};
};

bool works(MeshCipher cipher) {
  try {
    make_record_cipher(cipher, RecordWay::seal, MeshKey{});
    return true;
  } catch (const std::runtime_error&) {
    return false;
  }
}

}  // namespace

MeshCipher parse_mesh_cipher(std::string_view name) {
  return parse_name("mesh cipher", kCiphers, name);
}

std::vector<std::string> mesh_ciphers() {
  std::vector<std::string> names;
  if (works(MeshCipher::chacha20_poly1305)) names.emplace_back(kChaCha);
  if (works(MeshCipher::aes_256_gcm))
    names.emplace(has_aes_instructions() ? names.begin() : names.end(), kAes);
  return names;
}

std::unique_ptr<RecordCipher> make_record_cipher(MeshCipher cipher, RecordWay way,
                                                 const MeshKey& key) {
  if (cipher == MeshCipher::plain) return std::make_unique<RecordCheck>(key);
  return std::make_unique<Aead>(cipher, way, key);
}

}  // namespace hearth
