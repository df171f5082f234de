#include "mesh/libcrypto.h"

#include "platform/library.h"

namespace hearth::libcrypto {
namespace {

// A library that the process has loaded already, such as Python's, is found by its name first.
// (Never macOS's own libcrypto.dylib: it ends the process that loads it.)
std::vector<const char*> names() {
  return names_here(
      {"libcrypto-3.dll", "libcrypto-3-x64.dll", "libcrypto-3-arm64.dll", "libcrypto-1_1.dll"},
      {"libcrypto.3.dylib", "/opt/homebrew/opt/openssl@3/lib/libcrypto.3.dylib",
       "/usr/local/opt/openssl@3/lib/libcrypto.3.dylib"},
      {"libcrypto.so.3", "libcrypto.so.1.1"});
}

template <typename Function>
bool find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(find_symbol(library, name));
  return function != nullptr;
}

bool load(Functions& f) {
  for (const char* name : names()) {
    void* library = open_library(name);
    if (library == nullptr) continue;
    if (find(library, "EVP_CIPHER_CTX_new", f.new_context) &&
        find(library, "EVP_CIPHER_CTX_free", f.free_context) &&
        find(library, "EVP_aes_256_gcm", f.aes_256_gcm) &&
        find(library, "EVP_chacha20_poly1305", f.chacha20_poly1305) &&
        find(library, "EVP_EncryptInit_ex", f.encrypt_init) &&
        find(library, "EVP_EncryptUpdate", f.encrypt_update) &&
        find(library, "EVP_EncryptFinal_ex", f.encrypt_final) &&
        find(library, "EVP_DecryptInit_ex", f.decrypt_init) &&
        find(library, "EVP_DecryptUpdate", f.decrypt_update) &&
        find(library, "EVP_DecryptFinal_ex", f.decrypt_final) &&
        find(library, "EVP_CIPHER_CTX_ctrl", f.control))
      return true;  // stays loaded until the process ends
    close_library(library);
  }
  return false;
}

}  // namespace

const Functions* functions() {
  static Functions table;
  static const bool loaded = load(table);
  return loaded ? &table : nullptr;
}

}  // namespace hearth::libcrypto
