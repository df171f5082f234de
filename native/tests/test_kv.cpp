// The KV cache: which page has memory, where a position's numbers lie, and that no two share any.
#include <cmath>
#include <set>
#include <stdexcept>
#include <utility>
#include <vector>

#include "check.h"
#include "hearth/cpu.h"
#include "hearth/kv.h"
#include "hearth/quant.h"

using namespace hearth;

namespace {

constexpr KvShape kShape = {.layers = 3,
                            .kv_heads = 2,
                            .head_size = 10,
                            .page_size = 4,
                            .max_pages = 5,
                            .type = KvType::f32};

KvShape shape_of(KvType type) {
  KvShape shape = kShape;
  shape.type = type;
  return shape;
}

void test_memory() {
  for (KvType type : {KvType::f32, KvType::f16}) {
    KvCache cache(shape_of(type));
    const size_t bytes = 3 * 2 * 2 * 4 * 10 * (type == KvType::f32 ? 4u : 2u);
    CHECK_EQUAL(cache.page_bytes(), bytes);
    CHECK_EQUAL(cache.size_bytes(), size_t{0});
    cache.ensure(4);
    cache.ensure(1);
    cache.ensure(4);
    CHECK_EQUAL(cache.pages(), size_t{2});
    CHECK_EQUAL(cache.size_bytes(), 2 * bytes);
    CHECK_THROWS(cache.ensure(5), std::invalid_argument, "page 5 of a KV cache of 5 pages");
    CHECK_THROWS(cache.ensure(0xffffffffu), std::invalid_argument, "4294967295");
    CHECK_EQUAL(cache.pages(), size_t{2});
  }
}

// A plan may allow for many more pages than there will be: only those in use cost memory.
void test_a_large_plan_is_not_made_at_once() {
  KvShape shape = kShape;
  shape.max_pages = size_t{1} << 32;
  KvCache cache(shape);
  cache.ensure(0xffffffffu);
  CHECK_EQUAL(cache.pages(), size_t{1});
}

// Every strip lies within its page and begins where no other does.
void test_places() {
  for (KvType type : {KvType::f32, KvType::f16}) {
    KvCache cache(shape_of(type));
    const size_t strip = 4 * 10 * (type == KvType::f32 ? 4u : 2u);
    for (uint32_t page : {0u, 3u}) {
      cache.ensure(page);
      std::set<const uint8_t*> places;
      for (size_t layer = 0; layer < 3; ++layer) {
        for (size_t head = 0; head < 2; ++head) {
          places.insert(static_cast<const uint8_t*>(cache.keys(page, layer, head)));
          places.insert(static_cast<const uint8_t*>(cache.values(page, layer, head)));
        }
      }
      CHECK_EQUAL(places.size(), size_t{12});
      const uint8_t* last = nullptr;
      for (const uint8_t* place : places) {
        if (last != nullptr) CHECK_EQUAL(static_cast<size_t>(place - last), strip);
        last = place;
      }
      CHECK_EQUAL(static_cast<size_t>(*places.rbegin() - *places.begin()) + strip,
                  cache.page_bytes());
    }
  }
}

// What is stored is there, in its type, and nothing beside it changes: a new page is zeros.
void test_store() {
  for (const auto& name : instruction_sets()) {
    const Kernels& kernels = *find_kernels(name);
    for (KvType type : {KvType::f32, KvType::f16}) {
      const test::Case each(name, type == KvType::f32 ? " f32" : " f16");
      KvCache cache(shape_of(type));
      cache.ensure(2);
      std::vector<float> x(10);
      for (size_t i = 0; i < 10; ++i) x[i] = 1.0f / static_cast<float>(i + 3);
      cache.store(kernels, cache.values(2, 1, 1), 3, x.data());
      for (size_t layer = 0; layer < 3; ++layer) {
        for (size_t head = 0; head < 2; ++head) {
          for (bool values : {false, true}) {
            const void* rows = values ? cache.values(2, layer, head) : cache.keys(2, layer, head);
            for (size_t i = 0; i < 40; ++i) {
              const bool stored = layer == 1 && head == 1 && values && i >= 30;
              const float number = type == KvType::f32
                                       ? static_cast<const float*>(rows)[i]
                                       : f16_to_f32(static_cast<const uint16_t*>(rows)[i]);
              const float wanted = !stored               ? 0.0f
                                   : type == KvType::f32 ? x[i - 30]
                                                         : f16_to_f32(f32_to_f16(x[i - 30]));
              CHECK_EQUAL(number, wanted);
            }
          }
        }
      }
    }
  }
}

// q80: within half a step of what went in, in its own position only, and in no other's scales.
void test_q80() {
  CHECK_EQUAL(kv_row_bytes(KvType::q80, 64), size_t{72});
  CHECK_THROWS(kv_row_bytes(KvType::q80, 10), std::invalid_argument, "not 10");
  KvShape shape = shape_of(KvType::q80);
  shape.head_size = 64;
  for (const auto& name : instruction_sets()) {
    const Kernels& kernels = *find_kernels(name);
    const test::Case each(name);
    KvCache cache(shape);
    CHECK_EQUAL(cache.page_bytes(), size_t{3 * 2 * 2 * 4 * 72});
    cache.ensure(4);
    for (size_t slot = 0; slot < 4; ++slot) {
      std::vector<float> x(64);
      for (size_t i = 0; i < 64; ++i) x[i] = std::sin(static_cast<float>(slot * 64 + i));
      cache.store(kernels, cache.keys(4, 2, 0), slot, x.data());
    }
    std::vector<float> out(4 * 64);
    cache.read_q80(kernels, cache.keys(4, 2, 0), 4, out.data());
    for (size_t i = 0; i < out.size(); ++i)
      CHECK_NEAR(out[i], std::sin(static_cast<float>(i)), 0.5001 / 127.0);
    for (const void* other : {cache.values(4, 2, 0), cache.keys(4, 2, 1), cache.values(4, 1, 1)}) {
      cache.read_q80(kernels, other, 4, out.data());
      for (float number : out) CHECK_EQUAL(number, 0.0f);
    }
  }
}

void test_buffer() {
  CHECK_EQUAL(Buffer(0).size(), size_t{0});
  Buffer buffer(100);
  CHECK_EQUAL(reinterpret_cast<uintptr_t>(buffer.data()) % 64, uintptr_t{0});
  for (size_t i = 0; i < 100; ++i) CHECK_EQUAL(buffer.data()[i], uint8_t{0});
  buffer.data()[99] = 7;
  const Buffer moved = std::move(buffer);
  CHECK_EQUAL(moved.data()[99], uint8_t{7});
  CHECK_EQUAL(moved.size(), size_t{100});
  CHECK_THROWS(Buffer(size_t{1} << 60), std::bad_alloc, "");
}

}  // namespace

int main() {
  test_memory();
  test_places();
  test_a_large_plan_is_not_made_at_once();
  test_store();
  test_q80();
  test_buffer();
  return test::finish();
}
