// How elements are stored: weights in files, on the wire and before packing; the KV cache.
//
// Quantized weight types are blocks along a row: 32 elements, or 256 of the K-quants and iq4_xs.
// The bytes of a block are those of GGUF's types of the same names; q80 and q40 are its Q8_0 and
// Q4_0. formats/block_codecs.cpp has their layouts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace hearth {

// Numbered as WEIGHT in services/common/types.py, less 1.
enum class Type : uint8_t {
  f32,
  f16,
  q80,
  q40,
  q4_1,
  q5_0,
  q5_1,
  q2_k,
  q3_k,
  q4_k,
  q5_k,
  q6_k,
  iq4_nl,
  iq4_xs,
  mxfp4,
  bf16
};

struct TypeInfo {
  Type type;
  std::string_view name;
  // Elements of a block, and its bytes; a float is a block of one.
  size_t block, block_bytes;
};

// In the order of Type.
inline constexpr TypeInfo kTypeInfos[] = {
    {Type::f32, "f32", 1, 4},         {Type::f16, "f16", 1, 2},
    {Type::q80, "q8_0", 32, 34},      {Type::q40, "q4_0", 32, 18},
    {Type::q4_1, "q4_1", 32, 20},     {Type::q5_0, "q5_0", 32, 22},
    {Type::q5_1, "q5_1", 32, 24},     {Type::q2_k, "q2_k", 256, 84},
    {Type::q3_k, "q3_k", 256, 110},   {Type::q4_k, "q4_k", 256, 144},
    {Type::q5_k, "q5_k", 256, 176},   {Type::q6_k, "q6_k", 256, 210},
    {Type::iq4_nl, "iq4_nl", 32, 18}, {Type::iq4_xs, "iq4_xs", 256, 136},
    {Type::mxfp4, "mxfp4", 32, 17},   {Type::bf16, "bf16", 1, 2},
};
inline constexpr size_t kTypes = sizeof(kTypeInfos) / sizeof(kTypeInfos[0]);

constexpr size_t index_of(Type type) { return static_cast<size_t>(type); }
constexpr const TypeInfo& info_of(Type type) { return kTypeInfos[index_of(type)]; }

// Columns that share an activation's scale, and the smallest block of a quantized type.
inline constexpr size_t kBlock = 32;
// The largest block of any type.
inline constexpr size_t kLargestBlock = 256;
inline constexpr size_t kLargestBlockBytes = 210;

// The name of a weight type that may be given by its former name.
std::string_view current_name(std::string_view name);
// Throws std::invalid_argument naming the types there are.
Type parse_type(std::string_view name);
constexpr std::string_view type_name(Type type) { return info_of(type).name; }

// Of blocks, whose products take quantized activations.
constexpr bool is_quantized(Type type) { return info_of(type).block > 1; }

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
