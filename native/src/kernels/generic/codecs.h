// The blocks of quantized weights, as vectors of rows: formats/block_codecs.cpp defines their bytes
// and meaning. Written once, over a trait `B` of the bytes of an instruction set:
//
//   V                   its vector trait (vector.h)
//   kGroups             groups of eight rows that its vectors span, side by side: a stripe
//   At, at              the same place in each group of a stripe; At + bytes is a later one. at's
//                       last argument: how many groups there are; the rest repeats the first
//   Bytes               four bytes of each row of a stripe: a word a row
//   load                from packed groups
//   load_halves         f16 of each row, as f32
//   bits<kShift, kMask>    (byte >> kShift) & kMask of every byte
//   raised<kShift, kMask>  (byte << kShift) & kMask
//   word_bits              as bits, of the words; kShift < 0 shifts to the left
//   both, less          a | b; bytes less a constant
//   lookup              a table of sixteen bytes, by nibbles
//   fifths<kQuad>       16 in byte c where bit 4 kQuad + c of the row's word is set
//   Scale               an integer a row, as the products want it
//   scale<kByte>, signed_scale<kByte>, word_scale: of a byte of each word; of a whole one
//   to_float            of a scale
//   pairs               a u16 of each row, as words
//   exponents           of biased exponents the powers of two; 2^-127 for 0, NaN for 255
//   from_int8           signed codes as the products want them
//
// A codec says of a block of a group:
//
//   kType, kParts       parts of 32 columns
//   kLargest, kSigned   magnitude of a code; signed codes are int8, others unsigned
//   kOffset             by what unsigned codes are too large
//   kScales             integer scales of a part: none, one, or one for each half
//   kMinimum            whether there are minima, of as many
//   header, codes<kPart>, scales<kPart>
#pragma once

#include "../../formats/block_values.h"
#include "vector.h"

namespace hearth {
namespace {

constexpr size_t kQuads = kBlock / 4;     // of four columns in a part
constexpr size_t kWord = 4 * kGroupRows;  // bytes of a word of eight rows
constexpr size_t kHalf = 2 * kGroupRows;  // and of eight f16

// Vectors of f32 that hold the rows of a stripe.
template <typename B>
constexpr size_t kRowVectors = B::kGroups * kGroupRows / B::V::kWidth;
template <typename B>
using Rows = typename B::V::Float[kRowVectors<B>];
template <typename B>
using At = typename B::At;

// MXFP4's values plus 12, so that they are unsigned.
constexpr int8_t kRaisedFloat4Values[16] = {12, 13, 14, 15, 16, 18, 20, 24,
                                            12, 11, 10, 9,  8,  6,  4,  0};

// Values loaded once for all parts of a block.
template <typename B>
struct BlockHeader {
  using V = typename B::V;
  Rows<B> scale, minimum;
  typename B::Bytes scales[4], minima[4];

  void load_scale(At<B> at) { B::load_halves(at, scale); }
  void load_minimum(At<B> at) { B::load_halves(at, minimum); }
  // K-quants subtract theirs.
  void load_negative_minimum(At<B> at) {
    B::load_halves(at, minimum);
    unrolled<kRowVectors<B>>([&](auto v) { minimum[v] = V::sub(V::zero(), minimum[v]); });
  }
};

template <typename B>
using PartCodes = typename B::Bytes[kQuads];
template <typename B>
using PartScales = typename B::Scale[2];

// A codec without integer scales.
template <typename B, Type kCodecType, size_t kCodecLargest, int32_t kCodecOffset,
          bool kCodecMinimum = false>
struct PlainCodec {
  static constexpr Type kType = kCodecType;
  static constexpr size_t kParts = 1, kScales = 0, kLargest = kCodecLargest;
  static constexpr bool kSigned = false, kMinimum = kCodecMinimum;
  static constexpr int32_t kOffset = kCodecOffset;
  using Header = BlockHeader<B>;

  static void header(At<B> block, Header& h) {
    h.load_scale(block);
    if constexpr (kMinimum) h.load_minimum(block + kHalf);
  }
  template <size_t kPart>
  static void scales(const Header&, PartScales<B>&, PartScales<B>&) {}

 protected:
  // Of the four words of nibbles: columns 0 to 15 low, 16 to 31 high.
  static void nibbles(At<B> at, PartCodes<B>& codes) {
    unrolled<kQuads / 2>([&](auto i) {
      const typename B::Bytes bytes = B::load(at + kWord * i);
      codes[i] = B::template bits<0, 15>(bytes);
      codes[i + kQuads / 2] = B::template bits<4, 15>(bytes);
    });
  }
  static void five_bits(At<B> at, PartCodes<B>& codes) {
    nibbles(at + kWord, codes);
    const typename B::Bytes fifths = B::load(at);
    unrolled<kQuads>([&](auto i) { codes[i] = B::both(codes[i], B::template fifths<i>(fifths)); });
  }
};

template <typename B>
struct Q80 : PlainCodec<B, Type::q80, 128, 0> {
  static constexpr bool kSigned = true;
  template <size_t kPart>
  static void codes(At<B> block, PartCodes<B>& codes) {
    unrolled<kQuads>([&](auto i) { codes[i] = B::from_int8(B::load(block + kHalf + kWord * i)); });
  }
};

template <typename B>
struct Q40 : PlainCodec<B, Type::q40, 15, 8> {
  template <size_t kPart>
  static void codes(At<B> block, PartCodes<B>& codes) {
    Q40::nibbles(block + kHalf, codes);
  }
};

template <typename B>
struct Q41 : PlainCodec<B, Type::q4_1, 15, 0, true> {
  template <size_t kPart>
  static void codes(At<B> block, PartCodes<B>& codes) {
    Q41::nibbles(block + 2 * kHalf, codes);
  }
};

template <typename B>
struct Q50 : PlainCodec<B, Type::q5_0, 31, 16> {
  template <size_t kPart>
  static void codes(At<B> block, PartCodes<B>& codes) {
    Q50::five_bits(block + kHalf, codes);
  }
};

template <typename B>
struct Q51 : PlainCodec<B, Type::q5_1, 31, 0, true> {
  template <size_t kPart>
  static void codes(At<B> block, PartCodes<B>& codes) {
    Q51::five_bits(block + 2 * kHalf, codes);
  }
};

template <typename B>
struct Iq4Nl : PlainCodec<B, Type::iq4_nl, 127, 0> {
  static constexpr bool kSigned = true;
  template <size_t kPart>
  static void codes(At<B> block, PartCodes<B>& codes) {
    Iq4Nl::nibbles(block + kHalf, codes);
    unrolled<kQuads>([&](auto i) { codes[i] = B::from_int8(B::lookup(kUnevenValues, codes[i])); });
  }
};

template <typename B>
struct Mxfp4 : PlainCodec<B, Type::mxfp4, 24, 12> {
  static void header(At<B> block, BlockHeader<B>& h) {
    using V = typename B::V;
    // Powers of two of biased exponents; and the values of the codes are doubled.
    B::exponents(block, h.scale);
    unrolled<kRowVectors<B>>([&](auto v) { h.scale[v] = V::mul(h.scale[v], V::broadcast(0.5f)); });
  }
  template <size_t kPart>
  static void codes(At<B> block, PartCodes<B>& codes) {
    Mxfp4::nibbles(block + kGroupRows, codes);
    unrolled<kQuads>([&](auto i) { codes[i] = B::lookup(kRaisedFloat4Values, codes[i]); });
  }
};

// -- Blocks of 256

template <typename B, Type kCodecType, size_t kCodecLargest, int32_t kCodecOffset,
          size_t kCodecScales, bool kCodecMinimum>
struct LargeCodec {
  static constexpr Type kType = kCodecType;
  static constexpr size_t kParts = kLargestBlock / kBlock;
  static constexpr size_t kScales = kCodecScales, kLargest = kCodecLargest;
  static constexpr bool kSigned = false, kMinimum = kCodecMinimum;
  static constexpr int32_t kOffset = kCodecOffset;
  using Header = BlockHeader<B>;
  using Bytes = typename B::Bytes;

 protected:
  // Quad i of a part's 32 bytes, of which two parts share a half.
  template <size_t kPart>
  static Bytes nibbles(At<B> at, size_t i) {
    return B::template bits<kPart % 2 * 4, 15>(B::load(at + kWord * (kPart / 2 * kQuads + i)));
  }
  // Of 32 bytes that four parts share: two bits, raised.
  template <size_t kPart, int kRaise>
  static Bytes bit_pairs(At<B> at, size_t i) {
    constexpr int kShift = kPart % 4 * 2;
    const Bytes bytes = B::load(at + kWord * (kPart / 4 * kQuads + i));
    if constexpr (kShift >= kRaise)
      return B::template bits<kShift - kRaise, 3 << kRaise>(bytes);
    else
      return B::template raised<kRaise - kShift, 3 << kRaise>(bytes);
  }
  // Of 32 bytes that all parts share: one bit, raised.
  template <size_t kPart, size_t kRaise>
  static Bytes single_bits(At<B> at, size_t i) {
    const Bytes bytes = B::load(at + kWord * i);
    if constexpr (kPart >= kRaise)
      return B::template bits<kPart - kRaise, 1 << kRaise>(bytes);
    else
      return B::template raised<kRaise - kPart, 1 << kRaise>(bytes);
  }
};

// Of q4_k and q5_k: eight scales and eight minima of six bits in three words.
template <typename B, Type kCodecType, size_t kCodecLargest>
struct SixBitCodec : LargeCodec<B, kCodecType, kCodecLargest, 0, 1, true> {
  using Bytes = typename B::Bytes;
  static constexpr size_t kCodesAt = 2 * kHalf + 3 * kWord;

  static void header(At<B> block, BlockHeader<B>& h) {
    h.load_scale(block);
    h.load_negative_minimum(block + kHalf);
    const Bytes first = B::load(block + 2 * kHalf), second = B::load(block + 2 * kHalf + kWord);
    const Bytes third = B::load(block + 2 * kHalf + 2 * kWord);
    h.scales[0] = B::template bits<0, 63>(first);
    h.scales[1] = B::both(B::template bits<0, 15>(third), B::template bits<2, 48>(first));
    h.minima[0] = B::template bits<0, 63>(second);
    h.minima[1] = B::both(B::template bits<4, 15>(third), B::template bits<2, 48>(second));
  }
  template <size_t kPart>
  static void scales(const BlockHeader<B>& h, PartScales<B>& scales, PartScales<B>& minima) {
    scales[0] = B::template scale<kPart % 4>(h.scales[kPart / 4]);
    minima[0] = B::template scale<kPart % 4>(h.minima[kPart / 4]);
  }
};

template <typename B>
struct Q4K : SixBitCodec<B, Type::q4_k, 15> {
  template <size_t kPart>
  static void codes(At<B> block, PartCodes<B>& codes) {
    unrolled<kQuads>(
        [&](auto i) { codes[i] = Q4K::template nibbles<kPart>(block + Q4K::kCodesAt, i); });
  }
};

template <typename B>
struct Q5K : SixBitCodec<B, Type::q5_k, 31> {
  template <size_t kPart>
  static void codes(At<B> block, PartCodes<B>& codes) {
    const At<B> fifths = block + Q5K::kCodesAt;
    unrolled<kQuads>([&](auto i) {
      codes[i] = B::both(Q5K::template nibbles<kPart>(fifths + kQuads * kWord, i),
                         Q5K::template single_bits<kPart, 4>(fifths, i));
    });
  }
};

// Codecs with scales for half a part, four parts' in two words.
template <typename B, Type kCodecType, size_t kCodecLargest, int32_t kCodecOffset,
          bool kCodecMinimum>
struct HalvesCodec : LargeCodec<B, kCodecType, kCodecLargest, kCodecOffset, 2, kCodecMinimum> {
 protected:
  template <size_t kPart, bool kSignedScales>
  static void halves(const typename B::Bytes (&words)[4], PartScales<B>& scales) {
    unrolled<2>([&](auto h) {
      constexpr size_t kByte = kPart % 2 * 2 + h;
      if constexpr (kSignedScales)
        scales[h] = B::template signed_scale<kByte>(words[kPart / 2]);
      else
        scales[h] = B::template scale<kByte>(words[kPart / 2]);
    });
  }
};

template <typename B>
struct Q2K : HalvesCodec<B, Type::q2_k, 3, 0, true> {
  static void header(At<B> block, BlockHeader<B>& h) {
    h.load_scale(block);
    h.load_negative_minimum(block + kHalf);
    unrolled<4>([&](auto i) {
      const typename B::Bytes word = B::load(block + 2 * kHalf + kWord * i);
      h.scales[i] = B::template bits<0, 15>(word);
      h.minima[i] = B::template bits<4, 15>(word);
    });
  }
  template <size_t kPart>
  static void scales(const BlockHeader<B>& h, PartScales<B>& scales, PartScales<B>& minima) {
    Q2K::template halves<kPart, false>(h.scales, scales);
    Q2K::template halves<kPart, false>(h.minima, minima);
  }
  template <size_t kPart>
  static void codes(At<B> block, PartCodes<B>& codes) {
    unrolled<kQuads>([&](auto i) {
      codes[i] = Q2K::template bit_pairs<kPart, 0>(block + 2 * kHalf + 4 * kWord, i);
    });
  }
};

template <typename B>
struct Q3K : HalvesCodec<B, Type::q3_k, 7, 4, false> {
  static void header(At<B> block, BlockHeader<B>& h) {
    h.load_scale(block);
    const typename B::Bytes first = B::load(block + kHalf), second = B::load(block + kHalf + kWord);
    const typename B::Bytes pairs = B::load(block + kHalf + 2 * kWord);
    h.scales[0] = B::both(B::template bits<0, 15>(first), B::template raised<4, 48>(pairs));
    h.scales[1] = B::both(B::template bits<0, 15>(second), B::template raised<2, 48>(pairs));
    h.scales[2] = B::both(B::template bits<4, 15>(first), B::template bits<0, 48>(pairs));
    h.scales[3] = B::both(B::template bits<4, 15>(second), B::template bits<2, 48>(pairs));
    unrolled<4>([&](auto i) { h.scales[i] = B::less(h.scales[i], 32); });
  }
  template <size_t kPart>
  static void scales(const BlockHeader<B>& h, PartScales<B>& scales, PartScales<B>&) {
    Q3K::template halves<kPart, true>(h.scales, scales);
  }
  template <size_t kPart>
  static void codes(At<B> block, PartCodes<B>& codes) {
    const At<B> thirds = block + kHalf + 3 * kWord;
    unrolled<kQuads>([&](auto i) {
      codes[i] = B::both(Q3K::template bit_pairs<kPart, 0>(thirds + kQuads * kWord, i),
                         Q3K::template single_bits<kPart, 2>(thirds, i));
    });
  }
};

template <typename B>
struct Q6K : HalvesCodec<B, Type::q6_k, 63, 32, false> {
  static void header(At<B> block, BlockHeader<B>& h) {
    h.load_scale(block);
    unrolled<4>([&](auto i) { h.scales[i] = B::load(block + kHalf + kWord * i); });
  }
  template <size_t kPart>
  static void scales(const BlockHeader<B>& h, PartScales<B>& scales, PartScales<B>&) {
    Q6K::template halves<kPart, true>(h.scales, scales);
  }
  template <size_t kPart>
  static void codes(At<B> block, PartCodes<B>& codes) {
    // Parts 0 and 2, and 1 and 3, of each half share bytes of nibbles.
    constexpr size_t kBytes = kPart / 4 * 2 + kPart % 2;
    const At<B> low = block + kHalf + 4 * kWord;
    unrolled<kQuads>([&](auto i) {
      const typename B::Bytes nibbles =
          B::template bits<kPart % 4 / 2 * 4, 15>(B::load(low + kWord * (kBytes * kQuads + i)));
      codes[i] = B::both(nibbles, Q6K::template bit_pairs<kPart, 4>(low + 4 * kQuads * kWord, i));
    });
  }
};

template <typename B>
struct Iq4Xs : LargeCodec<B, Type::iq4_xs, 127, 0, 1, false> {
  static constexpr bool kSigned = true;
  static void header(At<B> block, BlockHeader<B>& h) {
    h.load_scale(block);
    h.scales[0] = B::load(block + 2 * kHalf);
    h.scales[1] = B::pairs(block + kHalf);
  }
  template <size_t kPart>
  static void scales(const BlockHeader<B>& h, PartScales<B>& scales, PartScales<B>&) {
    const auto nibble = B::template word_bits<4 * int(kPart), 15>(h.scales[0]);
    const auto pair = B::template word_bits<2 * int(kPart) - 4, 48>(h.scales[1]);
    scales[0] = B::word_scale(B::both(nibble, pair), 32);
  }
  template <size_t kPart>
  static void codes(At<B> block, PartCodes<B>& codes) {
    At<B> at = block + 2 * kHalf + kWord + kPart * (kQuads / 2) * kWord;
    unrolled<kQuads / 2>([&](auto i) {
      const typename B::Bytes bytes = B::load(at + kWord * i);
      codes[i] = B::from_int8(B::lookup(kUnevenValues, B::template bits<0, 15>(bytes)));
      codes[i + kQuads / 2] =
          B::from_int8(B::lookup(kUnevenValues, B::template bits<4, 15>(bytes)));
    });
  }
};

}  // namespace
}  // namespace hearth
