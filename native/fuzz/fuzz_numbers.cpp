// Conversions and the KV cache: names, sizes and bytes of any kind, in buffers exactly as large as
// the headers say.
#include <cmath>
#include <limits>
#include <stdexcept>

#include "hearth/cpu.h"
#include "hearth/file_formats.h"
#include "hearth/quant.h"
#include "input.h"
#include "shard/kv_cache.h"

using namespace hearth;

namespace {

void names(fuzz::Input& in) {
  const std::string name =
      in.upto(1) ? in.text(40) : std::string(type_name(Type(in.upto(kTypes - 1))));
  try {
    fuzz::demand(type_name(parse_type(name)) == name, "a type is its name");
  } catch (const std::invalid_argument& error) {
    fuzz::demand(std::string(error.what()).size() < 200, "an error is short");
  }
  const Type type = static_cast<Type>(in.upto(kTypes - 1));
  const size_t columns = in.number(128);
  try {
    const size_t bytes = row_bytes(type, columns);
    fuzz::demand(bytes >= columns / 4 && bytes <= columns * 4, "a row's bytes do not overflow");
  } catch (const std::invalid_argument&) {
    fuzz::demand(columns > kMostColumns || columns % info_of(type).block != 0,
                 "a row that can be is not refused");
  }
}

void rows(fuzz::Input& in) {
  const Type type = static_cast<Type>(in.upto(kTypes - 1));
  const size_t columns = is_quantized(type) ? info_of(type).block * in.upto(4) : in.upto(130);
  const size_t bytes = row_bytes(type, columns);
  const std::vector<float> x = in.reals(columns);
  std::vector<uint8_t> packed(bytes);
  std::vector<float> back(columns);
  quantize_row(type, x.data(), columns, packed.data());
  dequantize_row(type, packed.data(), columns, back.data());
  const auto usual = [](float each) { return std::abs(each) < 60000.0f; };
  if (std::all_of(x.begin(), x.end(), usual))
    fuzz::demand(std::all_of(back.begin(), back.end(), usual), "what is finite stays so");
  // Bytes from elsewhere.
  const std::vector<uint8_t> foreign = in.bytes(bytes);
  dequantize_row(type, foreign.data(), columns, back.data());
}

// Rows of a model's file, of any bytes: a cut is that place of the whole.
void files(fuzz::Input& in) {
  constexpr std::string_view kNames[] = {"f32",  "f16",    "bf16",   "q80",  "q40",  "q4_1",
                                         "q5_0", "q5_1",   "q2_k",   "q3_k", "q4_k", "q5_k",
                                         "q6_k", "iq4_nl", "iq4_xs", "mxfp4"};
  const FileFormat& format = file_format(kNames[in.upto(15)]);
  const size_t blocks = in.upto(3), rows = in.upto(2), columns = blocks * format.block;
  const std::vector<uint8_t> stored = in.bytes(rows * blocks * format.block_bytes);
  const Type to = static_cast<Type>(in.upto(kTypes - 1));
  const size_t begin = in.number(columns + 1), end = in.number(columns + 1);
  const bool whole = begin <= end && end <= columns;
  if (whole && (end - begin) % info_of(to).block != 0) return;
  std::vector<uint8_t> out(whole ? rows * row_bytes(to, end - begin) : 0);
  try {
    const float largest = convert_rows(format, to, {columns, begin, end}, stored, rows, out.data());
    fuzz::demand(whole, "a cut outside of the row is refused");
    fuzz::demand(!(largest < 0.0f), "a magnitude");
    if (format.largest_scale != nullptr) format.largest_scale(stored.data(), rows * blocks);
  } catch (const std::invalid_argument&) {
    fuzz::demand(!whole, "a cut that can be is made");
  }
}

// Any cut of a random matrix has the bytes of that place in the whole.
void cuts(fuzz::Input& in) {
  const Type type = static_cast<Type>(in.upto(kTypes - 1));
  const size_t unit = info_of(type).block;
  RandomCut cut{.seed = in.take<uint64_t>(),
                .row_begin = in.number(100),
                .rows = in.upto(3),
                .column_begin = in.number(100),
                .columns = unit * in.upto(5),
                .scale = in.real()};
  const size_t stride = row_bytes(type, cut.columns);
  std::vector<uint8_t> out(cut.rows * stride), single(stride);
  try {
    random_rows(type, cut, out.data());
    for (size_t r = 0; r < cut.rows; ++r) {
      RandomCut one = cut;
      one.row_begin = cut.row_begin + r;
      one.rows = 1;
      random_rows(type, one, single.data());
      fuzz::demand(stride == 0 || std::memcmp(single.data(), out.data() + r * stride, stride) == 0,
                   "a row is the same in any cut");
    }
  } catch (const std::invalid_argument&) {
    fuzz::demand(cut.column_begin % info_of(type).block != 0, "a cut that can be is made");
  }
}

void cache(fuzz::Input& in) {
  const auto names = instruction_sets();
  const Kernels& kernels = *find_kernels(names[in.upto(names.size() - 1)]);
  const KvType type = static_cast<KvType>(in.upto(2));
  const size_t head_size = type == KvType::q80 ? kBlock * (1 + in.upto(3)) : 1 + in.upto(70);
  try {
    const size_t size = in.number(100);
    kv_head_bytes(type, size, size, in.number(100));
  } catch (const std::invalid_argument&) {
  }
  const size_t layers = 1 + in.upto(1), kv_heads = 1 + in.upto(1);
  KvCache kv({.layers = std::vector<KvLayer>(layers, {kv_heads, head_size, head_size}),
              .page_size = 1 + in.upto(5),
              .max_pages = in.upto(1) ? 1 + in.upto(4) : size_t{1} << 24,
              .type = type});
  const KvShape& shape = kv.shape();
  for (size_t uses = in.upto(6); uses > 0; --uses) {
    const auto page = static_cast<uint32_t>(in.number(3));
    try {
      kv.ensure(page);
      fuzz::demand(page < shape.max_pages, "a page of the plan");
    } catch (const std::invalid_argument&) {
      fuzz::demand(page >= shape.max_pages, "a page of the plan is given");
      continue;
    }
    const size_t layer = in.upto(layers - 1), head = in.upto(kv_heads - 1);
    const size_t slot = in.upto(shape.page_size - 1);
    const void* keys = kv.keys(page, layer, head);
    const void* values = kv.values(page, layer, head);
    const std::vector<float> x = in.reals(head_size);
    if (in.upto(1)) {
      kv.store_key(kernels, kv.keys(page, layer, head), slot, x.data(), head_size);
    } else {
      kv.store_value(kernels, kv.values(page, layer, head), slot, x.data(), head_size);
    }
    std::vector<float> wide_keys(head_size * kv.stride()), wide_values(shape.page_size * head_size);
    if (type != KvType::f32 && (type == KvType::q80 || in.upto(1))) {
      kv.widen_keys(kernels, keys, head_size, wide_keys.data());
      kv.widen_values(kernels, values, slot + 1, head_size, wide_values.data());
      keys = wide_keys.data();
      values = wide_values.data();
    }
    const size_t query_heads = 1 + in.upto(2), slots = slot + 1;
    const std::vector<float> q = in.reals(query_heads * head_size);
    std::vector<float> scratch(query_heads * kv.stride()), shrink(query_heads), sum(query_heads),
        largest(query_heads, -std::numeric_limits<float>::infinity()), out(query_heads * head_size);
    const AttendArgs args = {.q = q.data(),
                             .keys = keys,
                             .values = values,
                             .queries = query_heads,
                             .key_size = head_size,
                             .value_size = head_size,
                             .slots = slots,
                             .stride = kv.stride(),
                             .scratch = scratch.data(),
                             .shrink = shrink.data(),
                             .largest = largest.data(),
                             .sum = sum.data(),
                             .out = out.data()};
    const bool halves = type == KvType::f16 && keys != wide_keys.data();
    (halves ? kernels.attend_f16 : kernels.attend_f32)(args);
  }
  fuzz::demand(kv.size_bytes() == kv.pages() * kv.page_bytes(), "pages have their bytes");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input in(data, size);
  switch (in.upto(3)) {
    case 0:
      names(in);
      break;
    case 1:
      rows(in);
      files(in);
      break;
    case 2:
      cuts(in);
      break;
    default:
      cache(in);
  }
  return 0;
}
