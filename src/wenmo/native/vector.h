// Several fp32 numbers at a time: as many as a register of this processor holds.
#ifndef WENMO_VECTOR_H
#define WENMO_VECTOR_H

#include <stdint.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
enum { LANES = 16 };
#elif defined(__AVX__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));

static inline Vector load(const float *from) { Vector v; memcpy(&v, from, sizeof v); return v; }
static inline void store(float *to, Vector v) { memcpy(to, &v, sizeof v); }
static inline Vector all(float x) { return x - (Vector){0}; }

// a · b + c, rounded once where the processor can; said here, since the compiler is told not to choose by itself.
static inline Vector fma_of(Vector a, Vector b, Vector c) {
#if defined(__AVX512F__)
    return (Vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FP_FAST_FMAF)
    for (int i = 0; i < LANES; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
#else
    return a * b + c;
#endif
}

static inline Vector chosen(Integers is, Vector a, Vector b) { return (Vector)(((Integers)a & is) | ((Integers)b & ~is)); }

static inline Vector larger(Vector a, Vector b) {
#ifdef __AVX512F__
    return (Vector)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return chosen(a > b, a, b);
#endif
}

// Of all lanes: folded in halves, in one order.
static inline float sum_of(Vector v) {
#ifdef __AVX512F__
    return _mm512_reduce_add_ps((__m512)v);
#else
    float x[LANES];
    memcpy(x, &v, sizeof x);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) x[i] += x[i + half];
    return x[0];
#endif
}
static inline float largest_of(Vector v) {
#ifdef __AVX512F__
    return _mm512_reduce_max_ps((__m512)v);
#else
    float x[LANES];
    memcpy(x, &v, sizeof x);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) x[i] = x[i] > x[i + half] ? x[i] : x[i + half];
    return x[0];
#endif
}

// 2^n · e^r with |r| ≤ ln(2) / 2; the series to r^7 is exact to fp32. Below −87 it is as at −87: 1.6e-38.
static inline Vector exp_of(Vector x) {
#ifdef __AVX512F__
    x = (Vector)_mm512_min_ps(_mm512_set1_ps(88.0f), _mm512_max_ps(_mm512_set1_ps(-87.0f), (__m512)x));  // NaN stays one
#else
    x = chosen(x < -87.0f, all(-87.0f), x);
    x = chosen(x > 88.0f, all(88.0f), x);
#endif
    const Vector magic = all(12582912.0f);  // 1.5 · 2^23: what is added to it is rounded to a whole number
    const Vector shifted = fma_of(x, all(1.44269504f), magic), whole = shifted - magic;
    Vector r = fma_of(whole, all(-0.693359375f), x);  // ln 2 in two parts, the first with few digits
    r = fma_of(whole, all(2.12194440e-4f), r);
    Vector y = fma_of(all(1.0f / 5040), r, all(1.0f / 720));
    y = fma_of(y, r, all(1.0f / 120));
    y = fma_of(y, r, all(1.0f / 24));
    y = fma_of(y, r, all(1.0f / 6));
    y = fma_of(y, r, all(0.5f));
    y = fma_of(y, r, all(1.0f));
    y = fma_of(y, r, all(1.0f));
#ifdef __AVX512F__
    return (Vector)_mm512_scalef_ps((__m512)y, (__m512)whole);
#else
    return (Vector)((Integers)y + (((Integers)shifted - (Integers)magic) << 23));
#endif
}

static inline uint16_t to_bf16(float x) {  // its upper half, rounded to the nearest, ties to even
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40);  // NaN stays one
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline float from_bf16(uint16_t x) {
    const uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

typedef uint16_t Bf16s __attribute__((vector_size(2 * LANES)));

static inline Vector load_bf16(const uint16_t *from) {
    Bf16s halves;
    memcpy(&halves, from, sizeof halves);
    return (Vector)(__builtin_convertvector(halves, Integers) << 16);
}

// As to_bf16.
static inline Bf16s bf16s_of(Vector v) {
#if defined(__AVX512BF16__) && defined(__AVX512F__)
    return (Bf16s)_mm512_cvtneps_pbh((__m512)v);
#else
    Integers bits = (Integers)v, even = bits + 0x7fff + (bits >> 16 & 1);
    bits = (Integers)chosen(v == v, (Vector)even, (Vector)(bits | 0x400000));
    return __builtin_convertvector(bits >> 16 & 0xffff, Bf16s);
#endif
}

// `count` of them, at most as many as there are lanes; zeros beside what is loaded.
static inline Vector load_first(const float *from, int count) {
    Vector v = {0};
    memcpy(&v, from, sizeof(float) * (size_t)count);
    return v;
}
static inline Vector load_first_bf16(const uint16_t *from, int count) {
    Bf16s halves = {0};
    memcpy(&halves, from, sizeof(uint16_t) * (size_t)count);
    return (Vector)(__builtin_convertvector(halves, Integers) << 16);
}
static inline void store_first(float *to, Vector v, int count) {
    if (count == LANES) memcpy(to, &v, sizeof v);
    else memcpy(to, &v, sizeof(float) * (size_t)count);
}
static inline void store_first_bf16(uint16_t *to, Vector v, int count) {
    const Bf16s halves = bf16s_of(v);
    if (count == LANES) memcpy(to, &halves, sizeof halves);
    else memcpy(to, &halves, sizeof(uint16_t) * (size_t)count);
}

#endif
