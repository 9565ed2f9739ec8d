// Numbers side by side in one register of the processor at hand: WIDTH floats, or as many whole numbers of 32 bits.
//
// What C has no word for is said by the instruction, where the compiler says that there is one; else in plain C. Either
// way each sum has one order and one rounding at each step, whatever is computed beside it.
#ifndef WENMO_LANES_H
#define WENMO_LANES_H

#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define WIDTH 16
#elif defined(__AVX2__) && defined(__FMA__)
#define WIDTH 8
#else
#define WIDTH 4
#endif
#if WIDTH > 4
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

typedef float Floats __attribute__((vector_size(4 * WIDTH)));
typedef int32_t Ints __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t Halves __attribute__((vector_size(2 * WIDTH)));

INLINE Floats floats_of(float value) { return value - (Floats){0}; }
INLINE Floats floats_at(const void *from) {
    Floats to;
    memcpy(&to, from, sizeof to);
    return to;
}

INLINE Floats fp16_at(const void *from) {
    Halves values;
    memcpy(&values, from, sizeof values);
#if WIDTH == 16
    return (Floats)_mm512_cvtph_ps((__m256i)values);
#elif WIDTH == 8 && defined(__F16C__)
    return (Floats)_mm256_cvtph_ps((__m128i)values);
#else
    Ints bits = __builtin_convertvector(values, Ints);
    // Its exponent counts from 15 where that of fp32 counts from 127.
    return (Floats)((Ints)((Floats)((bits & 0x7FFF) << 13) * 0x1p112f) | (bits & 0x8000) << 16);
#endif
}

INLINE Ints bytes_at(const void *from) {
    Ints to;
    memcpy(&to, from, sizeof to);
#if WIDTH == 16
    __asm__("" : "+v"(to));  // gcc would load it once more for each row
#endif
    return to;
}

INLINE Ints same_four_bytes(const void *from) {
    int32_t value;
    memcpy(&value, from, sizeof value);
    return value - (Ints){0};
}

INLINE Floats converted(Ints values) { return __builtin_convertvector(values, Floats); }
// Of the eight codes in a lane the two that are four apart, as numbers of 16 bits.
INLINE Ints two_codes(Ints codes, const int first) { return codes >> 4 * first & 0x000F000F; }

// The first `count`, which may be more than there are, or none.
INLINE void store_some(float *to, Floats values, int count) {
#if WIDTH == 16
    _mm512_mask_storeu_ps(to, count < WIDTH ? (__mmask16)((1u << count) - 1) : (__mmask16)-1, values);
#else
    if (count >= WIDTH) memcpy(to, &values, sizeof values);
    else for (int i = 0; i < count; i++) to[i] = values[i];
#endif
}

// a b + c, rounded once where there is an instruction for it.
INLINE Floats product_plus(Floats a, Floats b, Floats c) {
#if WIDTH == 16
    return _mm512_fmadd_ps(a, b, c);
#elif WIDTH == 8
    return _mm256_fmadd_ps(a, b, c);
#elif defined(__ARM_NEON) && defined(__aarch64__)
    return vfmaq_f32(c, a, b);
#else
    return a * b + c;
#endif
}

// sums + four products each: unsigned bytes of weights, signed bytes of a row (the same four in each lane).
INLINE Ints byte_products_plus(Ints weights, Ints row, Ints sums) {
#if WIDTH == 16 && defined(__AVX512VNNI__)
    return (Ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)weights, (__m512i)row);
#elif WIDTH == 8 && defined(__AVXVNNI__)
    return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)weights, (__m256i)row);
#elif WIDTH == 8
    // In pairs of 16 bits, the even bytes and the odd ones: sums of two products of bytes do not fit into fewer.
    __m256i even = _mm256_srai_epi16(_mm256_slli_epi16((__m256i)row, 8), 8), odd = _mm256_srai_epi16((__m256i)row, 8);
    __m256i low = _mm256_and_si256((__m256i)weights, _mm256_set1_epi16(255));
    __m256i high = _mm256_srli_epi16((__m256i)weights, 8);
    return sums + (Ints)_mm256_madd_epi16(low, even) + (Ints)_mm256_madd_epi16(high, odd);
#else
    for (int shift = 0; shift < 32; shift += 8)  // a byte of the row goes to the top, and comes back with its sign
        sums += (weights >> shift & 0xFF) * (row << (24 - shift) >> 24);
    return sums;
#endif
}

// sums + two products each: whole numbers of 16 bits of weights and of a row, small enough for their sum.
INLINE Ints word_products_plus(Ints weights, Ints row, Ints sums) {
#if WIDTH == 16 && defined(__AVX512VNNI__)
    return (Ints)_mm512_dpwssd_epi32((__m512i)sums, (__m512i)weights, (__m512i)row);
#elif WIDTH == 16
    return sums + (Ints)_mm512_madd_epi16((__m512i)weights, (__m512i)row);
#elif WIDTH == 8
    return sums + (Ints)_mm256_madd_epi16((__m256i)weights, (__m256i)row);
#else
    return sums + (weights << 16 >> 16) * (row << 16 >> 16) + (weights >> 16) * (row >> 16);
#endif
}

// sums + two products each, of bf16 numbers.
INLINE Floats bf16_products_plus(Ints weights, Ints row, Floats sums) {
#if WIDTH == 16 && defined(__AVX512BF16__)
    return _mm512_dpbf16_ps(sums, (__m512bh)weights, (__m512bh)row);
#else
    sums = product_plus((Floats)(weights << 16), (Floats)(row << 16), sums);
    return product_plus((Floats)(weights & (int32_t)0xFFFF0000), (Floats)(row & (int32_t)0xFFFF0000), sums);
#endif
}

#endif
