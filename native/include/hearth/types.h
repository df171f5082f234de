// How elements are stored: weights in files, on the wire and before packing; the KV cache.
//
// Weight types q80 and q40 are blocks of 32 elements along a row: an f16 scale, then 32 int8 (34
// bytes), or 32 four-bit values, of which byte j holds element j (low) and element j + 16 (high),
// each less 8 (18 bytes). These are the bytes of GGUF's Q8_0 and Q4_0.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace hearth {

enum class Type : uint8_t { f32, f16, q80, q40 };

inline constexpr size_t kBlock = 32;
inline constexpr size_t kQ80BlockBytes = 34;
inline constexpr size_t kQ40BlockBytes = 18;

// The name of a weight type that may be given by its former name.
std::string_view current_name(std::string_view name);
// Throws std::invalid_argument naming the types there are.
Type parse_type(std::string_view name);
std::string_view type_name(Type type);

inline bool is_quantized(Type type) { return type == Type::q80 || type == Type::q40; }

// Longer than any row there is, and short enough that its bytes do not overflow.
inline constexpr size_t kMostColumns = size_t{1} << 40;

// Bytes of one row. Throws std::invalid_argument when a quantized row is not a whole number of
// blocks, or longer than kMostColumns.
size_t row_bytes(Type type, size_t columns);

// How the KV cache stores keys and values. q80: int8 in blocks of 32 with an f32 scale each, as the
// kernel that quantizes activations makes them.
enum class KvType : uint8_t { f32, f16, q80 };

// Throws std::invalid_argument naming the types there are.
KvType parse_kv_type(std::string_view name);

inline constexpr size_t kMostHeadSize = 4096;

// Bytes of the keys and values of one head in one page of the KV cache. Throws
// std::invalid_argument when the type is q80 and a size not a whole number of blocks.
size_t kv_head_bytes(KvType type, size_t key_size, size_t value_size, size_t page_size);

}  // namespace hearth
