// The functions of OpenSSL's libcrypto that the mesh needs, found at run time.
#pragma once

namespace hearth::libcrypto {

// OpenSSL's own types, opaque here.
struct CipherContext;
struct Cipher;
struct Engine;

// EVP_*, by their manual pages. The same in OpenSSL 1.1 and 3.
struct Functions {
  CipherContext* (*new_context)();
  void (*free_context)(CipherContext*);
  const Cipher* (*aes_256_gcm)();
  const Cipher* (*chacha20_poly1305)();
  int (*encrypt_init)(CipherContext*, const Cipher*, Engine*, const unsigned char* key,
                      const unsigned char* nonce);
  int (*encrypt_update)(CipherContext*, unsigned char* out, int* out_size, const unsigned char* in,
                        int size);
  int (*encrypt_final)(CipherContext*, unsigned char* out, int* out_size);
  int (*decrypt_init)(CipherContext*, const Cipher*, Engine*, const unsigned char* key,
                      const unsigned char* nonce);
  int (*decrypt_update)(CipherContext*, unsigned char* out, int* out_size, const unsigned char* in,
                        int size);
  int (*decrypt_final)(CipherContext*, unsigned char* out, int* out_size);
  int (*control)(CipherContext*, int type, int argument, void* pointer);
};

// EVP_CTRL_AEAD_GET_TAG and EVP_CTRL_AEAD_SET_TAG.
inline constexpr int kGetTag = 0x10, kSetTag = 0x11;

// nullptr if this machine has no libcrypto. Loaded at the first call; thread-safe.
const Functions* functions();

}  // namespace hearth::libcrypto
